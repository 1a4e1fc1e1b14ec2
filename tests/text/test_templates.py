"""Templates of RPT: each shows the context once and asks for a box."""

from lit_rl.text.templates import TEMPLATES, fill_in


def test_every_template_shows_the_context_once_and_asks_for_a_box():
    for name in TEMPLATES:
        text = fill_in(name, "a {context} of its own")
        assert text.count("a {context} of its own") == 1, name
        assert r"\boxed{" in text.replace("a {context} of its own", ""), name


def test_the_templates_are_seven_different_ones():
    assert list(TEMPLATES) == [f"v{number}" for number in range(7)]
    assert len(set(TEMPLATES.values())) == 7
