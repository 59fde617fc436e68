"""Load one adapter's data set: file to token ids and labels, cut, counted, and split for evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpu_actor.contract.config import DatasetConfig, DataSource, TrainingConfig
from gpu_actor.contract.errors import DataError, NoAnswerError, UnfitDataError
from gpu_actor.data.formats import SampleReader
from gpu_actor.data.readers.read_records import read_records
from gpu_actor.data.records import Unpaired
from gpu_actor.data.sample_encoder import SampleEncoder
from gpu_actor.data.samples import EMPTY_ANSWER, NO_ANSWER, AnySet, Collector, UnpairedSet, joined

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


logger = logging.getLogger(__name__)

SHOWN_PROBLEMS = 5
ReadSource = Callable[[DataSource, TrainingConfig], "SourceSamples"]
"""Reads, tokenises and cuts one data set, as `read_source` does."""


@dataclass(frozen=True, eq=False)
class SourceSamples:
    """The samples of one data set before they are split, and what was counted on the way.

    Attributes:
        samples: All that can be trained on; None where that is nothing.
        records: How many the data set has.
        truncated: As of `Collector`.
        dropped: As of `Collector`.
        longest: As of `Collector`.
        unread: As of `LoadedDataset`.
        shortened: As of `LoadedDataset`.
    """

    samples: AnySet | None
    records: int
    truncated: int
    dropped: Mapping[str, int]
    longest: int
    unread: str
    shortened: int


@dataclass(frozen=True)
class MixedSource:
    """One data set of a mix, whose training samples lie one behind the other, behind those of the sets before it.

    Attributes:
        name: For people: the last part of its path.
        samples: How many samples there are to train on.
        per_epoch: How many of them an epoch takes, by its weight.
    """

    name: str
    samples: int
    per_epoch: int


@dataclass(frozen=True, eq=False)
class LoadedDataset:
    """A data set that is ready to train on.

    Attributes:
        train: Training samples in the order of the file, of a mix set by set.
        val: Samples held out for evaluation, in the order of the file; may be empty.
        truncated: Samples of the whole file that were cut to `cutoff_len`.
        dropped: Samples of the whole file that were left out, because their answer is blank or no token in them
            carries loss (not counting the first one, which nothing predicts), and pairs of which a side has none,
            or whose sides are the same.
        longest: Tokens of the longest sequence that is ever run (of a pair, the longer side).
        unread: The columns that were not read, in words of bounded length; empty where there are none.
        shortened: Conversations of the whole file in which the chat template left out a part of an answer that is to
            be learned (the thoughts of earlier turns, say).
        mix: The data sets of a mix; empty where there is one alone.
    """

    train: AnySet
    val: AnySet
    truncated: int
    dropped: int
    longest: int
    unread: str = ""
    shortened: int = 0
    mix: tuple[MixedSource, ...] = ()


def load_dataset(
    config: DatasetConfig,
    training: TrainingConfig,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
    vocab_size: int,
    positions: int | None = None,
) -> LoadedDataset:
    """Read, tokenise, cut and split the data set of one adapter, or each of those that it mixes, in this process.

    Args:
        config: The files, their formats and the shares to hold out.
        training: `cutoff_len`, `train_on_inputs` and `seed` are used.
        tokenizer: Gives the base model's tokenizer; not called for the format `tokens`.
        vocab_size: Number of tokens that the base model knows.
        positions: Longest sequence that the base model can run; None: any.

    Raises:
        DataError: As `assemble_dataset`.
    """

    def read(source: DataSource, training: TrainingConfig) -> SourceSamples:
        collector = Collector(training.cutoff_len)
        return read_source(source, training, tokenizer, vocab_size, collector)

    return assemble_dataset(config, training, read, positions)


def assemble_dataset(
    config: DatasetConfig, training: TrainingConfig, read: ReadSource, positions: int | None = None
) -> LoadedDataset:
    """The data set of one adapter from what is read of each of its sources.

    Args:
        config: The files, their formats and the shares to hold out.
        training: `cutoff_len`, `train_on_inputs` and `seed` are used.
        read: Reads one of them.
        positions: Longest sequence that the base model can run; None: any.

    Raises:
        DataError: The file cannot be read, has records that cannot be used (all are counted, the first ones
            are named by line), leaves nothing to train on, or has a sample that the base model cannot run; of a mix
            the message begins with the place in the list.
    """
    if not config.mix:
        return _split_source(config, training, read(config, training), positions)
    parts = []
    for number, source in enumerate(config.sources):
        try:
            parts.append(_split_source(source, training, read(source, training), positions))
        except DataError as error:
            raise type(error)(f"dataset[{number}]: {error}") from None
    return _mixed(config.sources, parts)


def _mixed(sources: Sequence[DataSource], parts: Sequence[LoadedDataset]) -> LoadedDataset:
    names = [Path(source.path).name for source in sources]
    unread = [f"{name}: {part.unread}" for name, part in zip(names, parts, strict=True) if part.unread]
    unique = [name if names.count(name) == 1 else f"{name}[{number}]" for number, name in enumerate(names)]
    counts = [len(part.train) for part in parts]
    return LoadedDataset(
        train=joined([part.train for part in parts]),
        val=joined([part.val for part in parts]),
        truncated=sum(part.truncated for part in parts),
        dropped=sum(part.dropped for part in parts),
        longest=max(part.longest for part in parts),
        unread="; ".join(unread),
        shortened=sum(part.shortened for part in parts),
        mix=tuple(
            MixedSource(name, count, source.samples_per_epoch(count))
            for name, count, source in zip(unique, counts, sources, strict=True)
        ),
    )


def read_source(
    config: DataSource,
    training: TrainingConfig,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
    vocab_size: int,
    collector: Collector,
    after_each: Callable[[], None] = lambda: None,
) -> SourceSamples:
    """Read, tokenise and cut the samples of one data set.

    Args:
        config: As of `load_dataset`, here and below.
        training: See there.
        tokenizer: See there.
        vocab_size: See there.
        collector: Takes in the samples; what is in it at the end is in the result.
        after_each: Is called after each record.

    Raises:
        DataError: As `assemble_dataset`.
    """
    path = config.path
    reader = SampleReader(config, training, vocab_size)
    encoder = SampleEncoder(config, training, tokenizer, vocab_size)
    problems: list[str] = []
    records = bad = 0
    for place, record in read_records(config):
        records += 1
        try:
            if isinstance(record, DataError):
                raise record
            sample = reader.read(record)
            desirable = sample.desirable if isinstance(sample, Unpaired) else None
            collector.add(*encoder.encode(sample), desirable=desirable)
        except NoAnswerError:
            collector.dropped[EMPTY_ANSWER] += 1
        except UnfitDataError as error:
            raise UnfitDataError(f"{place}: {error}") from None
        except DataError as error:
            bad += 1
            if len(problems) < SHOWN_PROBLEMS:
                problems.append(f"{place}: {error}")
        after_each()
    if bad:
        raise DataError(_list_problems(path, problems, bad, records))
    if not records:
        raise DataError(f"{path}: holds no record; a data set needs at least one")
    return SourceSamples(
        collector.collected(),
        records,
        collector.truncated,
        collector.dropped,
        collector.longest,
        reader.unread.in_words(),
        encoder.shortened,
    )


def _list_problems(path: str, problems: Sequence[str], bad: int, records: int) -> str:
    if bad == 1:
        return problems[0]
    more = [f"... and {bad - len(problems)} more"] if bad > len(problems) else []
    return "\n".join([f"{path}: {bad} of {records} records cannot be used:", *problems, *more])


def _split_source(
    config: DataSource, training: TrainingConfig, read: SourceSamples, positions: int | None
) -> LoadedDataset:
    path = config.path
    if positions is not None and read.longest > positions:
        # KTO also runs prompts with other samples' answers, and a text of that kind may be the longest
        what = "a sample, or a prompt with another sample's answer," if training.objective == "kto" else "a sample"
        raise DataError(
            f"{path}: {what} has {read.longest} tokens, but the base model has a table of {positions} positions "
            f"and cannot run more; lower training.cutoff_len ({training.cutoff_len}) to {positions}"
        )
    if read.samples is None:
        raise DataError(_nothing_left(path, read, training.cutoff_len))
    train, val = _split(path, read.samples, config.val_size, training.seed)
    if isinstance(train, UnpairedSet) and len(train) < 2:
        raise DataError(
            f"{path}: one sample is left to train on; training.objective kto compares each answer with those of other "
            "samples, and needs two or more"
        )
    dropped = sum(read.dropped.values())
    if dropped:
        logger.info("%s: %d of %d records were dropped (%s)", path, dropped, read.records, _reasons(read))
    if read.unread:
        logger.info("%s: columns not read: %s", path, read.unread)
    return LoadedDataset(train, val, read.truncated, dropped, read.longest, read.unread, read.shortened)


def _nothing_left(path: str, read: SourceSamples, cutoff_len: int) -> str:
    if set(read.dropped) == {NO_ANSWER}:
        return (
            f"{path}: nothing to train on: all {read.records} samples were dropped, as none has a token with loss "
            f"within its first {cutoff_len} tokens; raise training.cutoff_len, or check the labels"
        )
    return f"{path}: nothing to train on: all {read.records} records were dropped ({_reasons(read)}); check them"


def _reasons(read: SourceSamples) -> str:
    return ", ".join(f"{count}: {reason}" for reason, count in read.dropped.items())


def _split(path: str, samples: AnySet, val_size: float, seed: int) -> tuple[AnySet, AnySet]:
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
