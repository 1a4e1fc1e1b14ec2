"""Stop strings: a text of several tokens ends a completion, however its tokens spell it."""

import pytest
import torch
from conftest import tiny_spec
from vocabularies import CHATML, chatting

from lit_rl.models.policy import Policy
from lit_rl.rollouts import Rollouts
from lit_rl.sampling.renderer import Renderer
from lit_rl.sampling.sampler import SampleKey, Sampler
from lit_rl.text.stop_strings import StopStrings
from lit_rl.types import PromptBatch, Sample


class Pieces:
    """A tokenizer is asked for the bytes of its tokens alone."""

    def __init__(self, monkeypatch, pieces):
        monkeypatch.setattr("lit_rl.text.stop_strings.token_bytes", lambda tokenizer: pieces)


def test_a_stop_string_is_found_over_the_borders_of_tokens(monkeypatch):
    Pieces(monkeypatch, [b"12", b"\n", b"\nQ", b":", b"Q:"])
    watch = StopStrings(["\n\nQ:"], None).watch(2)
    assert [watch.add(0, token) for token in (0, 1, 2, 3)] == [False, False, False, True]
    assert [watch.add(1, token) for token in (1, 0, 1, 4)] == [False] * 4  # one line break is missing
    assert watch.stopped == [True, False]


def test_a_stop_string_inside_a_token_ends_the_text_before_it(monkeypatch):
    Pieces(monkeypatch, [b"4;5"])
    stops = StopStrings([";", "5"], None)
    assert stops.watch(1).add(0, 0)
    assert stops.cut("4;5") == "4"


def test_a_character_that_is_split_between_tokens_is_found(monkeypatch):
    euro = "€".encode()
    Pieces(monkeypatch, [euro[:1], euro[1:]])
    watch = StopStrings(["€"], None).watch(1)
    assert [watch.add(0, 0), watch.add(0, 1)] == [False, True]


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="stop_strings holds an empty text"):
        StopStrings(["a", ""], None)


def _sampled(stop_strings: list[str]) -> Rollouts:
    torch.manual_seed(1)
    tokenizer = chatting(CHATML, "<|im_start|>", "<|im_end|>")
    policy = Policy(tiny_spec(config={"vocab_size": 400}, stop_strings=stop_strings), tokenizer)
    prompt = torch.tensor([[5, 6, 7]])
    prompts = PromptBatch(prompt, torch.ones_like(prompt, dtype=torch.bool), [[]], [Sample("", "", "", 0)])
    return Sampler(max_new_tokens=24).sample(policy, prompts, 16, SampleKey(0, 0))


def test_a_sampled_row_ends_at_its_stop_string_and_keeps_all_its_tokens():
    free = _sampled([])
    tokenizer = chatting(CHATML, "<|im_start|>", "<|im_end|>")
    # Two tokens of a row that runs on: as a stop string they must end it, and no row that is without them.
    row = int((free.lengths - 2 * (~free.truncated)).argmax())
    pieces = [tokenizer.convert_ids_to_tokens(ids) for ids in free.completion_ids[row].tolist()]
    place = next(k for k in range(3, 20) if all(len(piece) == 1 and piece.isascii() for piece in pieces[k : k + 2]))
    stop = "".join(pieces[place : place + 2])
    rows = _sampled([stop])
    assert bool(rows.stopped[row])
    assert int(rows.lengths[row]) <= place + 2
    length = int(rows.lengths[row])
    assert torch.equal(rows.completion_ids[row, :length], free.completion_ids[row, :length])
    assert not bool(rows.truncated[row])
    assert rows.completions()[row] == free.completion_ids[row, :length].tolist()
    assert stop in Renderer(tokenizer).decode(rows)[row]
    kept = ~rows.stopped
    assert torch.equal(rows.lengths[kept], free.lengths[kept])
