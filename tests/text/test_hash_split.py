"""Splits by hash: shares are uniform, and equal in every process."""

from lit_rl.text.hash_split import hash_number, hash_share


def test_the_share_is_the_beginning_of_the_sha256_as_a_fraction():
    assert hash_share("a") == 0xCA978112CA1B / 2**48
    assert hash_number("a", 2) == 0xCA97


def test_a_lone_surrogate_has_a_share():
    assert 0 <= hash_share("\ud800") < 1


def test_a_twentieth_of_the_texts_has_a_share_below_a_twentieth():
    # 500 of 10,000, with a standard deviation of 22.
    assert abs(sum(hash_share(str(number)) < 0.05 for number in range(10_000)) - 500) < 110
