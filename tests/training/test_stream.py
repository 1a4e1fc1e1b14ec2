"""Training streams alone: position, epochs and resuming, on batches and micro-batches that are only names."""

from types import SimpleNamespace

import pytest
import torch

from lit_rl.training.batch_plan import BatchPlan
from lit_rl.training.stream import PromptStream, TrainingStream

BATCHES = 3


class Loader:
    """Batches ``epoch.number``; its own sampler."""

    def __init__(self, batches=BATCHES):
        self.batches, self.sampler, self.position = batches, self, (0, 0)

    def set_position(self, epoch, batch):
        self.position = (epoch, batch)

    def __len__(self):
        return self.batches

    def __iter__(self):
        epoch, first = self.position
        return (f"{epoch}.{number}" for number in range(first, self.batches))


class Names(TrainingStream):
    """Four micro-batches of each batch, but only as many as ``early`` says of the batches named there."""

    def __init__(self, position=0, accumulate=1, ranks=1, early=None, loader=None):
        plan, runtime = (
            BatchPlan(8, ranks, 1, 1, 4 // accumulate, accumulate),
            SimpleNamespace(position=position, sum=lambda values: values),
        )
        super().__init__(Loader() if loader is None else loader, plan, runtime)
        self.early, self.begun, self.current = early or {}, [], ""

    def begin(self):
        self.current = self.prompts.next()
        self.begun.append(self.current)

    def size(self):
        return 8, 100

    @property
    def unfinished(self):
        return super().unfinished and self._done < self.early.get(self.current, 4)

    def micro_batches(self):
        return (f"{self.current} {letter}" for letter in "abcd"[: self.early.get(self.current, 4)])

    def state_dict(self):
        return super().state_dict() | {"current": self.current}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.current = state["current"]


def epoch(number, batches=range(BATCHES)):
    return [f"{number}.{batch} {letter}" for batch in batches for letter in "abcd"]


def test_an_epoch_is_every_micro_batch_of_every_batch():
    stream = Names()
    assert len(stream) == 4 * BATCHES
    assert list(stream) == epoch(0)
    assert list(stream) == epoch(1)


def test_nothing_begins_before_the_first_micro_batch_is_asked_for():
    stream = Names()
    micro_batches = iter(stream)
    assert stream.begun == []
    assert next(micro_batches) == "0.0 a"
    assert stream.begun == ["0.0"]


def test_an_epoch_that_ends_inside_a_batch_goes_on_in_the_next():
    early = {"0.0": 2, "0.2": 3}
    stream = Names(early=early)
    # 2 + 4 + 3 of epoch 0 leave room for 3 of the next batch.
    whole = ["0.0 a", "0.0 b", *epoch(0, [1]), "0.2 a", "0.2 b", "0.2 c", *epoch(1)]
    assert list(stream) == whole[:12]
    assert list(stream) == [*whole[12:], *epoch(2)[:3]]


@pytest.mark.parametrize("early", [None, {"0.0": 2, "0.2": 3}], ids=["whole batches", "batches that end early"])
def test_a_stream_resumes_at_every_position(early):
    first, second = (list(Names(early=early)) for _ in range(2))
    assert first == second
    for done in range(len(first)):
        stream = Names(early=early)
        micro_batches = iter(stream)
        assert [next(micro_batches) for _ in range(done)] == first[:done]
        resumed = Names(position=done, early=early)
        resumed.load_state_dict(stream.state_dict())
        assert list(resumed) == first[done:], done
        resumed.runtime.position = 0
        whole = Names(early=early)
        assert [list(whole), list(whole)] == [first, list(resumed)], done


def test_a_batch_whose_beginning_failed_is_taken_again():
    class Fails(Names):
        def begin(self):
            super().begin()
            if self.current == "0.1":
                raise RuntimeError

    stream, seen = Fails(), []
    with pytest.raises(RuntimeError):
        seen.extend(iter(stream))
    resumed = Names(position=4)
    resumed.load_state_dict(stream.state_dict())
    assert list(resumed) == epoch(0, [1, 2])


def test_generators_go_on_where_the_checkpoint_left_them():
    stream = Names()
    micro_batches = iter(stream)
    next(micro_batches)
    state = stream.state_dict()
    expected = torch.rand(3).tolist()
    resumed = Names(position=1)
    resumed.load_state_dict(state)
    torch.rand(7)  # as Lightning may, before the first step
    next(iter(resumed))
    assert torch.rand(3).tolist() == expected


def test_a_position_inside_an_accumulation_window_is_refused():
    state = Names(accumulate=2).state_dict()
    Names(position=2, accumulate=2).load_state_dict(state)
    with pytest.raises(ValueError, match="written inside an accumulation window"):
        Names(position=3, accumulate=2).load_state_dict(state)


def test_the_scale_undoes_the_mean_over_micro_batches_and_ranks():
    assert Names(accumulate=2).scale == 2
    assert Names(accumulate=2, ranks=2).scale == 4


def test_loaders_without_batches_or_position_are_refused():
    with pytest.raises(ValueError, match=r"fewer samples than one batch of 8; lower data\.batch_size"):
        Names(loader=Loader(0))
    with pytest.raises(ValueError, match="sampler is a SequentialSampler, which cannot resume"):
        PromptStream(torch.utils.data.DataLoader([1, 2]))


def test_changed_data_are_read_from_the_same_position():
    loader = Loader()
    prompts = PromptStream(loader)
    assert prompts.next() == "0.0"
    loader.batches = 2
    prompts.restart()
    assert [prompts.next() for _ in range(3)] == ["0.1", "1.0", "1.1"]
