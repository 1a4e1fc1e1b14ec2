"""Base LightningDataModule: samples in an order that can be resumed at any batch, tokenized in the loader's workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Subset
from transformers import PreTrainedTokenizerBase

from lit_rl.options import check_choice, check_whole
from lit_rl.text.token_bytes import token_bytes
from lit_rl.text.windows import Windows
from lit_rl.types import Sample

from .collate import collate
from .lengths import Overlong, check_fit, limit_prompts
from .positions import Positions, PositionSpec, WindowSamples, windows_of_samples

SORTED_BATCHES = 50
"""Batches that are sorted by length together: more give less padding, fewer a more random order."""


class EpochSampler(DistributedSampler):
    """Order of an epoch's samples: a function of seed and epoch alone, resumable at any batch.

    Rank r takes places r, r + ranks, ...: together the ranks' batches are the batch of a single process.

    Args:
        dataset: the samples.
        batch_size: samples per batch on each rank; an incomplete last batch is dropped.
        ranks: number of processes.
        rank: number of this process.
        seed: seeds the permutations.
        endless: every epoch takes the next samples of an endless data set, in place of a permutation of the same ones.
        group_by_length: sort the samples of `SORTED_BATCHES` batches by length, then shuffle the batches.
    """

    def __init__(
        self,
        dataset: Dataset[Sample],
        batch_size: int,
        ranks: int,
        rank: int,
        *,
        seed: int,
        endless: bool = False,
        group_by_length: bool = False,
    ) -> None:
        super().__init__(dataset, num_replicas=ranks, rank=rank, seed=seed, drop_last=True)
        self.batch_size, self.endless, self.group_by_length = batch_size, endless, group_by_length
        self.first_batch = 0

    def set_position(self, epoch: int, batch: int) -> None:
        """Start the next iteration at a batch of an epoch."""
        self.set_epoch(epoch)
        self.first_batch = batch

    def __len__(self) -> int:
        size = len(self.dataset)  # type: ignore[arg-type]
        return size // (self.batch_size * self.num_replicas) * self.batch_size

    def __iter__(self) -> Iterator[int]:
        per_batch = self.batch_size * self.num_replicas
        order = self._order()[: len(self) * self.num_replicas]
        # A window holds whole global batches, and its end does not depend on the first batch.
        window = per_batch * (SORTED_BATCHES if self.group_by_length else 1)
        # A resumed epoch begins at the window of its first batch: sorting needs the whole window.
        for start in range(self.first_batch * per_batch // window * window, len(order), window):
            places = order[start : start + window]
            if self.group_by_length:
                places = self._by_length(places, per_batch, start)
            skip = max(0, self.first_batch * per_batch - start)
            yield from places[skip + self.rank :: self.num_replicas].tolist()

    def _order(self) -> torch.Tensor:
        size = len(self.dataset)  # type: ignore[arg-type]
        if self.endless:
            # The source draws at random already: a permutation would add nothing.
            return torch.arange(self.epoch * size, (self.epoch + 1) * size)
        # Seeded by the pair: by a sum, epoch 1 of seed 0 would be epoch 0 of seed 1.
        return torch.from_numpy(np.random.default_rng([self.seed, self.epoch]).permutation(size))

    def _by_length(self, places: torch.Tensor, per_batch: int, start: int) -> torch.Tensor:
        # Every rank reads the samples of all ranks: the batches are then the same for any number of ranks.
        samples = [self.dataset[place] for place in places.tolist()]
        lengths = torch.tensor([sum(map(len, (each.prompt, each.completion, each.context, each.target))) for each in samples])
        # Stable, since ranks must agree on the order of equal lengths.
        batches = places[lengths.argsort(stable=True)].view(-1, per_batch)  # (batches, per_batch)
        # Shuffled, so that short batches don't all come first.
        shuffled = np.random.default_rng([self.seed, self.epoch, start]).permutation(len(batches))
        return batches[shuffled].flatten()


class PromptDataModule(pl.LightningDataModule):
    """A source of samples for any algorithm. Subclasses set ``train_set``, ``val_set`` and ``test_set`` in ``setup``.

    Args:
        batch_size: prompts per batch, over all ranks: one optimizer step of SFT, one rollout of reinforcement learning.
        eval_batch_size: problems that are answered at a time in evaluation, on each rank.
        num_workers: loader processes per rank; 0 prepares batches in the main process.
        max_prompt_tokens: most tokens of a prompt; none: as many as fit into the model's positions with all that follows.
        overlong: longer prompts ``refuse`` to start the run, ``drop`` their samples, or are ``cut`` to their ends.
        group_by_length: put texts of like length into one batch (SFT: less padding).
        seed: seeds generated problems and the order of samples; linked to ``seed_everything`` on the command line.
    """

    endless = False
    """The training set continues after its length: an epoch takes the next samples."""
    trainer: pl.Trainer  # the Trainer sets it before it calls the data module
    train_set: Dataset[Sample]
    val_set: Sequence[Sample]
    test_set: Sequence[Sample]

    def __init__(
        self,
        *,
        batch_size: int = 32,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        max_prompt_tokens: int | None = None,
        overlong: Overlong = "refuse",
        group_by_length: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_choice("data.overlong", overlong, Overlong)
        self.predict_on("test_set")
        self.max_prompt_tokens, self.overlong = max_prompt_tokens, overlong
        if max_prompt_tokens is not None:
            check_whole("data", "max_prompt_tokens", max_prompt_tokens, 2)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers, self.group_by_length, self.seed = num_workers, group_by_length, seed
        for option, least in (("batch_size", 1), ("eval_batch_size", 1), ("num_workers", 0), ("seed", 0)):
            check_whole("data", option, getattr(self, option), least)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the policy."""
        return self.trainer.lightning_module.tokenizer

    def train_dataloader(self) -> Any:
        """The module's training data, made from a loader of prompts."""
        ranks = self.trainer.world_size
        if isinstance(self.train_set, IterableDataset):
            raise ValueError(
                "data.train_set is an IterableDataset, whose samples have no numbers, so that a run could not resume; "
                "give a list of samples, or a data set with __getitem__ and __len__."
            )
        self._limit_prompts("train_set")
        # `BatchPlan` refuses a batch size that does not divide.
        size = self.batch_size // ranks
        sampler = EpochSampler(
            self.train_set,
            size,
            ranks,
            self.trainer.global_rank,
            seed=self.seed,
            endless=self.endless,
            group_by_length=self.group_by_length,
        )
        loader = DataLoader(
            self.train_set,
            batch_size=size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=partial(collate, self.tokenizer),
            drop_last=True,
            # Its own generator: creating an iterator would otherwise move the global one.
            generator=torch.Generator().manual_seed(self.seed),
        )
        return self.trainer.lightning_module.training_data(loader)  # type: ignore[operator]

    def val_dataloader(self) -> DataLoader:
        return self._evaluation_loader("val_set")

    def test_dataloader(self) -> DataLoader:
        return self._evaluation_loader("test_set")

    def predict_dataloader(self) -> DataLoader:
        return self._evaluation_loader(self._predicted, self._predict_limit)

    def predict_on(self, name: str, limit: int = 0) -> None:
        """Let `predict` go through the first ``limit`` samples of a set; 0: all of them. Without this call: the test set."""
        self._predicted, self._predict_limit = name, limit

    def take_positions(self, spec: PositionSpec) -> None:
        """Replace the samples of all three sets by positions inside them."""
        # Positions of one epoch's problems are a finite set, which the sampler must permute.
        self.endless = False
        pieces = token_bytes(self.tokenizer)
        for name in ("train_set", "val_set", "test_set"):
            positions = Positions(self._windows(name), pieces, spec.labels_length)
            if name != "train_set":
                positions.thin_out(spec.eval_positions)
            setattr(self, name, positions)

    def _windows(self, name: str) -> Windows:
        """Windows whose targets are the positions of a set: a window per sample, its completion the targets."""
        return windows_of_samples(name, getattr(self, name), self.tokenizer)

    def _limit_prompts(self, name: str) -> None:
        """Bring the prompts of a set to the lengths that `max_prompt_tokens` and the model allow."""
        samples, training = getattr(self, name), name == "train_set"
        generated = training and self.endless
        if self.max_prompt_tokens is not None:
            if generated or isinstance(samples, Positions | WindowSamples):
                raise ValueError(
                    f"data.max_prompt_tokens is for whole samples of known length; data.{name} is "
                    f"{'generated' if generated else 'positions or windows'}: leave it out."
                )
            samples = limit_prompts(name, samples, self.tokenizer, self.max_prompt_tokens, self.overlong)
            setattr(self, name, samples)
        if not generated:
            check_fit(name, samples, self.trainer.lightning_module, training)

    def _evaluation_loader(self, name: str, limit: int = 0) -> DataLoader:
        if getattr(self, name, None) is None:
            raise ValueError(f"{type(self).__name__} has no {name}; set it in `setup`, or write trainer.limit_val_batches 0.")
        self._limit_prompts(name)
        samples, ranks = getattr(self, name), self.trainer.world_size
        samples = Subset(samples, range(min(limit, len(samples)))) if limit else samples
        # A rank without problems would skip the evaluation, and the others would wait for it in a collective.
        if 0 < len(samples) < ranks:
            raise ValueError(f"data.{name} has {len(samples)} problems for {ranks} processes; give each one at least.")
        # Lightning keeps a DistributedSampler as it is; its own for evaluation repeats some.
        # No repeats: every rank answers its own problems, and none is counted twice.
        sampler = UnrepeatedDistributedSampler(
            samples, num_replicas=self.trainer.world_size, rank=self.trainer.global_rank, shuffle=False
        )
        return DataLoader(
            samples,
            batch_size=self.eval_batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=partial(collate, self.tokenizer),
            generator=torch.Generator().manual_seed(self.seed),
        )
