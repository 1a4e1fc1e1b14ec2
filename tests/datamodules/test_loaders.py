"""Prompts: the same problems however they are loaded, held-out sets that training never sees, and resumable order."""

import random

import numpy as np
import pytest
import torch
from conftest import tiny_data
from jsonargparse import ArgumentParser
from math_runs import attached
from torch.utils.data import DataLoader, IterableDataset

from lit_rl.datamodules import GSM8K, RPN, Arithmetic, Corpus, EpochSampler, OmniMath, PositionSpec, ReasonedArithmetic
from lit_rl.datamodules.base import SORTED_BATCHES
from lit_rl.tasks import Grammar
from lit_rl.types import Sample


def arithmetic(*grammar, **options):
    """Arithmetic as it is in a fit, with small sets."""
    return attached(Arithmetic(*grammar, **options) if grammar else tiny_data(**options), "arithmetic")


def prompt_loader(data):
    """The loader of prompts below the module's training data."""
    return data.train_dataloader().prompts.loader


def texts(samples) -> list[str]:
    return [samples[place].prompt for place in range(len(samples))]


class Words(list):
    """Samples of the given lengths; ``size`` of them are an epoch."""

    def __init__(self, lengths, size=None):
        super().__init__(Sample("x" * length, "", "", number) for number, length in enumerate(lengths))
        self.size = size or len(lengths)

    def __len__(self):
        return self.size


# --- Arithmetic ------------------------------------------------------------------------------------------------------


def test_workers_prepare_the_same_samples():
    batches = {}
    for workers in (0, 2):
        loader = prompt_loader(arithmetic(num_workers=workers))
        batches[workers] = [(batch.samples, batch.ids.tolist()) for batch in loader]
    assert len(batches[0]) == 8  # 64 problems, 8 at a time
    assert batches[0] == batches[2]


def test_training_never_sees_a_held_out_problem():
    data = arithmetic(Grammar(max_digits=1, max_depth=1), val_problems=100, test_problems=100, epoch_size=4000)
    val, test = set(texts(data.val_set)), set(texts(data.test_set))
    train = set(texts(data.train_set))
    assert len(val) == len(test) == 100
    assert not val & test
    assert not train & (val | test)
    assert len(train) > 300  # of the few that there are: the sets would meet without being held apart


def test_a_level_never_sees_a_held_out_problem():
    easy, hard = Grammar(max_digits=1), Grammar(max_digits=1, operators=["+", "-", "*"])
    data = arithmetic(hard, levels=[easy], val_problems=100, test_problems=100, epoch_size=2000)
    held_out = set(texts(data.val_set)) | set(texts(data.test_set))
    assert not set(texts(data.train_set)) & held_out


def test_the_held_out_sets_do_not_depend_on_the_seed():
    first, second = arithmetic(seed=1), arithmetic(seed=2)
    assert first.val_set == second.val_set
    assert first.test_set == second.test_set
    assert texts(first.train_set) != texts(second.train_set)


def test_every_epoch_has_new_problems():
    sampler = prompt_loader(arithmetic()).sampler
    sampler.set_position(0, 0)
    first = list(sampler)
    sampler.set_position(1, 0)
    assert (first, list(sampler)) == (list(range(64)), list(range(64, 128)))


def test_a_level_is_set_between_epochs():
    levels = [Grammar(max_digits=1, operators=["+"], signed=False)]
    data = arithmetic(Grammar(max_digits=4, operators=["*"]), levels=levels, epoch_size=50)
    assert all("+" in text for text in texts(data.train_set))
    data.set_level(1)
    assert all("*" in text for text in texts(data.train_set))
    data.setup("fit")
    assert all("*" in text for text in texts(data.train_set)), "a later setup keeps the level"


def test_completions_are_tokenized_with_the_end_token():
    for scratchpad in ("none", "columns"):
        data = arithmetic(scratchpad=scratchpad)
        batch = next(iter(prompt_loader(data)))
        end = data.tokenizer.eos_token_id
        for ids, sample in zip(batch.completions, batch.samples, strict=True):
            assert ids[-1] == end
            text = data.tokenizer.decode(ids[:-1], clean_up_tokenization_spaces=False).replace(" ", "")
            assert text == sample.completion, scratchpad


def test_prompts_are_padded_on_the_left():
    data = arithmetic()
    batch = next(iter(prompt_loader(data)))
    start = data.tokenizer.convert_tokens_to_ids("<bos>")
    for ids, mask, sample in zip(batch.ids, batch.mask, batch.samples, strict=True):
        own = ids[mask]
        assert own[0] == start
        assert bool(mask[-len(own) :].all())
        assert own.tolist() == data.tokenizer(sample.prompt, add_special_tokens=False)["input_ids"]


def test_making_a_loaders_iterator_leaves_the_global_generators_alone():
    data = arithmetic()
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    for loader in (prompt_loader(data), data.val_dataloader(), data.test_dataloader()):
        list(loader)
    after = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_every_data_module_shows_the_options_of_its_bases_with_their_help():
    loader = ("batch_size", "eval_batch_size", "num_workers", "seed")
    generated, words = ("levels", "epoch_size", "val_problems"), ("malformed", "chat", "eval_problems", "positions")
    for source, own in (
        (Arithmetic, (*generated, "group_by_length")),
        (ReasonedArithmetic, (*generated, "group_by_length")),
        (RPN, (*generated, "group_by_length")),
        (GSM8K, (*words, "group_by_length", "test_path")),
        (OmniMath, (*words, "group_by_length", "domains")),
        (Corpus, ("positions", "window")),
    ):
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(source)
        shown = {action.dest: action.help for action in parser._actions}
        for option in (*loader, *own):
            assert len(shown[option]) > 10, (source, option)
        assert ("group_by_length" in shown) == (source is not Corpus)


# --- EpochSampler ----------------------------------------------------------------------------------------------------


def batches_of(sampler) -> list[list[int]]:
    places, size = list(sampler), sampler.batch_size
    return [places[start : start + size] for start in range(0, len(places), size)]


def test_the_ranks_together_have_the_batches_of_one_process():
    samples = Words([number * 7 % 31 for number in range(250)], size=125)
    for ranks, endless, by_length in ((2, False, False), (2, True, True), (3, True, False), (3, False, True)):
        order = {"seed": 5, "endless": endless, "group_by_length": by_length}
        alone = EpochSampler(samples, 12, 1, 0, **order)
        together = [EpochSampler(samples, 12 // ranks, ranks, rank, **order) for rank in range(ranks)]
        for sampler in (alone, *together):
            sampler.set_position(1, 0)
        shares = zip(*(batches_of(sampler) for sampler in together), strict=True)
        joined = [[place for places in zip(*share, strict=True) for place in places] for share in shares]
        assert joined == batches_of(alone), (ranks, order)
        assert len(joined) == 10  # 125 // 12


def test_a_position_skips_exactly_the_batches_before_it():
    samples = Words([number * 7 % 31 for number in range(250)])
    for by_length in (False, True):
        sampler = EpochSampler(samples, 4, 1, 0, seed=3, group_by_length=by_length)
        sampler.set_position(2, 0)
        whole = batches_of(sampler)
        for batch in (0, 1, SORTED_BATCHES - 1, SORTED_BATCHES, SORTED_BATCHES + 1, 62):
            sampler.set_position(2, batch)
            assert batches_of(sampler) == whole[batch:], (by_length, batch)


def test_the_order_is_a_function_of_seed_and_epoch():
    samples = Words([1] * 100)

    def order(seed, epoch):
        sampler = EpochSampler(samples, 4, 1, 0, seed=seed)
        sampler.set_position(epoch, 0)
        return list(sampler)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)
    assert sorted(order(1, 0)) == sorted(order(1, 1)) == list(range(100))


def test_like_lengths_stand_in_one_batch_and_every_sample_once():
    lengths = [number * 37 % 101 for number in range(400)]
    sampler = EpochSampler(Words(lengths), 8, 1, 0, seed=1, group_by_length=True)
    batches = batches_of(sampler)
    assert sorted(place for batch in batches for place in batch) == list(range(400))
    spread = [max(lengths[place] for place in batch) - min(lengths[place] for place in batch) for batch in batches]
    assert max(spread) <= 3  # 400 samples of 101 lengths, 8 at a time: two or three lengths a batch
    firsts = [lengths[batch[0]] for batch in batches]
    assert firsts != sorted(firsts), "short batches do not all come first"


def test_an_incomplete_last_batch_is_left_out():
    sampler = EpochSampler(Words([1] * 10), 4, 1, 0, seed=1)
    assert len(sampler) == len(list(sampler)) == 8
    loader = DataLoader(Words([1] * 10), batch_size=4, sampler=sampler, collate_fn=list, drop_last=True)
    assert [len(batch) for batch in loader] == [4, 4]


# --- what is wrong with it -------------------------------------------------------------------------------------------


def test_a_size_that_is_not_a_whole_number_is_refused():
    for option in ("batch_size", "eval_batch_size", "epoch_size", "val_problems"):
        for value in (None, 0, 2.5, True):
            with pytest.raises(ValueError, match=rf"^data\.{option} is {value}; write a whole number, 1 or more\.$"):
                tiny_data(**{option: value})


def test_reasoned_arithmetic_refuses_what_it_would_break():
    for options in ({"positions": PositionSpec()}, {"scratchpad": "steps"}):
        with pytest.raises(ValueError, match=r"leave data\.positions and data\.scratchpad out"):
            ReasonedArithmetic(**options)


def test_a_level_of_positions_is_refused():
    data = arithmetic(positions=PositionSpec(), levels=[Grammar(max_digits=1)])
    with pytest.raises(ValueError, match="leave them or the Curriculum out"):
        data.set_level(0)


def test_sets_that_cannot_be_loaded_are_refused(monkeypatch):
    data = arithmetic(num_workers=1)
    assert data.val_dataloader().num_workers == 1
    data.train_set = type("Endless", (IterableDataset,), {"__iter__": lambda self: iter(())})()
    with pytest.raises(ValueError, match="an IterableDataset, whose samples have no numbers"):
        data.train_dataloader()
    monkeypatch.setattr(type(data.trainer), "world_size", 17)
    with pytest.raises(ValueError, match="val_set has 16 problems for 17 processes"):
        data.val_dataloader()
    del data.val_set
    with pytest.raises(ValueError, match="Arithmetic has no val_set; set it in `setup`"):
        data.val_dataloader()
