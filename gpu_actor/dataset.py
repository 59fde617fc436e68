"""Load one adapter's data set: file to token ids and labels, cut, counted, and split for evaluation."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gpu_actor.config import DatasetConfig, DatasetFormat, TrainingConfig
from gpu_actor.data_files import Record, read_records
from gpu_actor.data_formats import IGNORE_INDEX, Tokens, detect_format, read_sample
from gpu_actor.errors import DataError
from gpu_actor.tokenize import SampleEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN_PROBLEMS = 5


@dataclass(frozen=True, eq=False)
class SampleSet:
    """Samples in flat arrays: a million of them are three arrays, not Python objects.

    Attributes:
        input_ids: The token ids of all samples, one after the other.
        labels: Their labels, unshifted as in transformers; -100 where no loss is taken.
        offsets: Where each sample starts, and the end of the last one.
    """

    input_ids: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        start, end = self.offsets[index], self.offsets[index + 1]
        return self.input_ids[start:end], self.labels[start:end]

    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each sample."""
        return np.diff(self.offsets)

    def select(self, indices: npt.NDArray[np.int64]) -> SampleSet:
        """A copy of some samples, in the given order."""
        lengths = self.lengths()[indices]
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
        # Source position of each token: where its sample starts, plus how far it is into that sample.
        sources = np.repeat(self.offsets[indices] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return SampleSet(self.input_ids[sources], self.labels[sources], offsets)


@dataclass(frozen=True, eq=False)
class LoadedDataset:
    """A data set that is ready to train on.

    Attributes:
        train: Training samples in the order of the file.
        val: Samples held out for evaluation, in the order of the file; may be empty.
        truncated: Samples of the whole file that were cut to `cutoff_len`.
        dropped: Samples of the whole file that were left out, because no token in them carries loss (not
            counting the first one, which nothing predicts).
    """

    train: SampleSet
    val: SampleSet
    truncated: int
    dropped: int


def load_dataset(
    config: DatasetConfig,
    training: TrainingConfig,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
    vocab_size: int,
) -> LoadedDataset:
    """Read, tokenise, cut and split the data set of one adapter.

    Args:
        config: The file, its format and the share to hold out.
        training: `cutoff_len`, `train_on_inputs` and `seed` are used.
        tokenizer: Gives the base model's tokenizer; not called for the format `tokens`.
        vocab_size: Number of tokens that the base model knows.

    Raises:
        DataError: The file cannot be read, has records that cannot be used (all are counted, the first ones
            are named by line), or leaves nothing to train on.
    """
    path = Path(config.path)
    reader = _RecordReader(config.format, training, tokenizer, vocab_size)
    collected = _Collector(training.cutoff_len)
    problems: list[str] = []
    records = bad = 0
    for line, record in read_records(path):
        records += 1
        try:
            if isinstance(record, DataError):
                raise record
            collected.add(*reader.encode(record))
        except DataError as error:
            bad += 1
            if len(problems) < SHOWN_PROBLEMS:
                problems.append(f"{path}:{line}: {error}")
    if bad:
        raise DataError(_list_problems(path, problems, bad, records))
    if not records:
        raise DataError(f"{path}: holds no record; a data set needs at least one")
    return _finish(path, collected, records, config, training)


def _list_problems(path: Path, problems: Sequence[str], bad: int, records: int) -> str:
    if bad == 1:
        return problems[0]
    more = [f"... and {bad - len(problems)} more"] if bad > len(problems) else []
    return "\n".join([f"{path}: {bad} of {records} records cannot be used:", *problems, *more])


def _finish(
    path: Path, collected: _Collector, records: int, config: DatasetConfig, training: TrainingConfig
) -> LoadedDataset:
    samples = collected.samples()
    if not len(samples):
        raise DataError(
            f"{path}: nothing to train on: all {records} samples were dropped, as none has a token with loss "
            f"within its first {training.cutoff_len} tokens; raise training.cutoff_len, or check the labels"
        )
    train, val = _split(path, samples, config.val_size, training.seed)
    return LoadedDataset(train, val, collected.truncated, collected.dropped)


def _split(path: Path, samples: SampleSet, val_size: float, seed: int) -> tuple[SampleSet, SampleSet]:
    """Hold out a seeded choice of samples; both parts keep the order of the file."""
    total = len(samples)
    held = int(val_size) if val_size >= 1 else round(val_size * total)
    if val_size > 0:
        held = max(1, held)
    if held >= total:
        raise DataError(
            f"{path}: dataset.val_size {val_size} holds out {held} of {total} usable samples, which leaves "
            f"none to train on; lower it or give more samples"
        )
    chosen = np.zeros(total, dtype=bool)
    # A generator of its own, so that the choice depends on the seed and the number of samples alone.
    chosen[np.random.Generator(np.random.PCG64(seed)).permutation(total)[:held]] = True
    if not held:
        return samples, samples.select(np.flatnonzero(chosen))
    return samples.select(np.flatnonzero(~chosen)), samples.select(np.flatnonzero(chosen))


class _RecordReader:
    """Turns one record after another into token ids and labels; the first one settles `auto`."""

    def __init__(
        self,
        data_format: DatasetFormat,
        training: TrainingConfig,
        tokenizer: Callable[[], PreTrainedTokenizerBase],
        vocab_size: int,
    ) -> None:
        self._format = data_format
        self._training = training
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._encoder: SampleEncoder | None = None

    def encode(self, record: Record) -> tuple[Sequence[int], Sequence[int]]:
        """Token ids and labels of a record.

        Raises:
            DataError: The record is not of the format.
        """
        if self._format == "auto":
            self._format = detect_format(record)
        sample = read_sample(record, self._format, self._vocab_size)
        if isinstance(sample, Tokens):
            return self._labelled(sample)
        if self._encoder is None:
            self._encoder = SampleEncoder(self._tokenizer(), self._training.train_on_inputs)
        ids, labels = self._encoder.encode(sample)
        if len(ids) and ids.max() >= self._vocab_size:
            raise DataError(
                f"the tokenizer gives token {ids.max()}, but the base model knows only tokens below "
                f"{self._vocab_size}; the tokenizer does not belong to this model"
            )
        return ids.tolist(), labels.tolist()

    def _labelled(self, sample: Tokens) -> tuple[list[int], list[int]]:
        if sample.labels is None:
            return sample.input_ids, sample.input_ids
        if self._training.train_on_inputs:
            raise DataError(
                "labels: training.train_on_inputs is true, but the labels already say where loss is taken; "
                "remove one of the two"
            )
        return sample.input_ids, sample.labels


class _Collector:
    """Cuts samples, counts what is lost, and keeps the rest in flat arrays."""

    def __init__(self, cutoff_len: int) -> None:
        self._cutoff_len = cutoff_len
        self._input_ids, self._labels, self._offsets = array("i"), array("i"), array("q", [0])
        self.truncated = 0
        self.dropped = 0

    def add(self, input_ids: Sequence[int], labels: Sequence[int]) -> None:
        """Keep a sample, unless no loss is left in it."""
        if len(input_ids) > self._cutoff_len:
            self.truncated += 1
            input_ids, labels = input_ids[: self._cutoff_len], labels[: self._cutoff_len]
        # Nothing predicts the first token, so its label is worth nothing.
        if all(label == IGNORE_INDEX for label in labels[1:]):
            self.dropped += 1
            return
        self._input_ids.extend(input_ids)
        self._labels.extend(labels)
        self._offsets.append(len(self._input_ids))

    def samples(self) -> SampleSet:
        """All that was kept."""
        return SampleSet(
            np.frombuffer(self._input_ids, dtype=np.int32),
            np.frombuffer(self._labels, dtype=np.int32),
            np.frombuffer(self._offsets, dtype=np.int64),
        )
