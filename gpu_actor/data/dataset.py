"""Load one adapter's data set: file to token ids and labels, cut, counted, and split for evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gpu_actor.contract.config import DatasetConfig, TrainingConfig
from gpu_actor.contract.errors import DataError, NoAnswerError, UnfitDataError
from gpu_actor.data.formats import detect_format, read_fields, read_sample
from gpu_actor.data.readers.read_records import read_records
from gpu_actor.data.records import Chat, Pair, Record, Sample, Single, Tokens, shorten
from gpu_actor.data.samples import EMPTY_ANSWER, NO_ANSWER, Collector, Labelled, PairSet, SampleSet
from gpu_actor.data.tokenize import SampleEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["LoadedDataset", "PairSet", "SampleSet", "load_dataset"]

logger = logging.getLogger(__name__)

SHOWN_PROBLEMS = 5


@dataclass(frozen=True, eq=False)
class LoadedDataset:
    """A data set that is ready to train on.

    Attributes:
        train: Training samples in the order of the file.
        val: Samples held out for evaluation, in the order of the file; may be empty.
        truncated: Samples of the whole file that were cut to `cutoff_len`.
        dropped: Samples of the whole file that were left out, because their answer is blank or no token in them
            carries loss (not counting the first one, which nothing predicts), and pairs of which a side has none,
            or whose sides are the same.
        longest: Tokens of the longest sequence (of a pair, the longer side).
    """

    train: SampleSet | PairSet
    val: SampleSet | PairSet
    truncated: int
    dropped: int
    longest: int


def load_dataset(
    config: DatasetConfig,
    training: TrainingConfig,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
    vocab_size: int,
    positions: int | None = None,
) -> LoadedDataset:
    """Read, tokenise, cut and split the data set of one adapter.

    Args:
        config: The file, its format and the share to hold out.
        training: `cutoff_len`, `train_on_inputs` and `seed` are used.
        tokenizer: Gives the base model's tokenizer; not called for the format `tokens`.
        vocab_size: Number of tokens that the base model knows.
        positions: Longest sequence that the base model can run; None: any.

    Raises:
        DataError: The file cannot be read, has records that cannot be used (all are counted, the first ones
            are named by line), leaves nothing to train on, or has a sample that the base model cannot run.
    """
    path = config.path
    reader = _RecordReader(config, training, tokenizer, vocab_size)
    collected = Collector(training.cutoff_len)
    problems: list[str] = []
    records = bad = 0
    for place, record in read_records(config):
        records += 1
        try:
            if isinstance(record, DataError):
                raise record
            collected.add(*reader.encode(record))
        except NoAnswerError:
            collected.dropped[EMPTY_ANSWER] += 1
        except UnfitDataError as error:
            raise UnfitDataError(f"{place}: {error}") from None
        except DataError as error:
            bad += 1
            if len(problems) < SHOWN_PROBLEMS:
                problems.append(f"{place}: {error}")
    if bad:
        raise DataError(_list_problems(path, problems, bad, records))
    if not records:
        raise DataError(f"{path}: holds no record; a data set needs at least one")
    if positions is not None and collected.longest > positions:
        raise DataError(
            f"{path}: a sample has {collected.longest} tokens, but the base model has a table of {positions} positions "
            f"and cannot run more; lower training.cutoff_len ({training.cutoff_len}) to {positions}"
        )
    return _finish(path, collected, records, config, training)


def _list_problems(path: str, problems: Sequence[str], bad: int, records: int) -> str:
    if bad == 1:
        return problems[0]
    more = [f"... and {bad - len(problems)} more"] if bad > len(problems) else []
    return "\n".join([f"{path}: {bad} of {records} records cannot be used:", *problems, *more])


def _finish(
    path: str, collected: Collector, records: int, config: DatasetConfig, training: TrainingConfig
) -> LoadedDataset:
    samples = collected.collected()
    if samples is None:
        raise DataError(_nothing_left(path, collected, records, training.cutoff_len))
    train, val = _split(path, samples, config.val_size, training.seed)
    dropped = collected.dropped.total()
    if dropped:
        logger.info("%s: %d of %d records were dropped (%s)", path, dropped, records, _reasons(collected))
    return LoadedDataset(train, val, collected.truncated, dropped, collected.longest)


def _nothing_left(path: str, collected: Collector, records: int, cutoff_len: int) -> str:
    if set(collected.dropped) == {NO_ANSWER}:
        return (
            f"{path}: nothing to train on: all {records} samples were dropped, as none has a token with loss "
            f"within its first {cutoff_len} tokens; raise training.cutoff_len, or check the labels"
        )
    return f"{path}: nothing to train on: all {records} records were dropped ({_reasons(collected)}); check them"


def _reasons(collected: Collector) -> str:
    return ", ".join(f"{count}: {reason}" for reason, count in collected.dropped.items())


def _split(
    path: str, samples: SampleSet | PairSet, val_size: float, seed: int
) -> tuple[SampleSet | PairSet, SampleSet | PairSet]:
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
        config: DatasetConfig,
        training: TrainingConfig,
        tokenizer: Callable[[], PreTrainedTokenizerBase],
        vocab_size: int,
    ) -> None:
        self._format = config.format
        self._columns: dict[str, str] | None = config.columns  # until they have been looked at
        self._template = config.chat_template
        self._training = training
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._encoder: SampleEncoder | None = None

    def encode(self, record: Record) -> tuple[Labelled, ...]:
        """Token ids and labels of a record: of the sample, or of both sides of a pair.

        Raises:
            DataError: The record is not of the format.
        """
        if self._format == "auto":
            self._format = detect_format(record, pairs=self._training.objective != "sft")
        self._check_objective()
        self._check_columns(record)
        return tuple(map(self._encode, _sides(read_sample(record, self._format, self._vocab_size))))

    def _check_objective(self) -> None:
        objective, pairs = self._training.objective, self._format == "preference"
        if pairs and objective == "sft":
            raise UnfitDataError(
                "holds preference pairs, but training.objective is sft, which learns from samples; set the "
                "objective to dpo, cpo or orpo, or give samples"
            )
        if not pairs and objective != "sft":
            raise UnfitDataError(
                f"holds samples of the format {self._format}, but training.objective is {objective}, which "
                "learns from preference pairs; give pairs (chosen and rejected), or set the objective to sft"
            )

    def _check_columns(self, record: Record) -> None:
        """Refuse a renamed column that the format does not read: it was asked for, and would be dropped."""
        columns, self._columns = self._columns, None
        known = read_fields(record, self._format) if columns else frozenset()
        for field, column in (columns or {}).items():
            if field not in known:
                raise UnfitDataError(
                    f"dataset.columns.{field}: {shorten(column)} would not be read: these records are of the format "
                    f"{self._format}, which has {', '.join(sorted(known))}; remove it, or set dataset.format"
                )

    def _encode(self, sample: Single) -> Labelled:
        if self._template is not None and not isinstance(sample, Chat):
            raise UnfitDataError(
                "dataset.chat_template is given, but these samples are no conversations; remove it, or write them as "
                "messages"
            )
        if isinstance(sample, Tokens):
            return self._labelled(sample)
        if self._encoder is None:
            self._encoder = SampleEncoder(self._tokenizer(), self._training.train_on_inputs, self._template)
        ids, labels = self._encoder.encode(sample)
        if len(ids) and ids.max() >= self._vocab_size:
            raise DataError(
                f"the tokenizer gives token {ids.max()}, but the base model knows only tokens below "
                f"{self._vocab_size}; the tokenizer does not belong to this model"
            )
        return ids, labels

    def _labelled(self, sample: Tokens) -> Labelled:
        ids = np.asarray(sample.input_ids, dtype=np.int32)
        if sample.labels is None:
            return ids, ids
        if self._training.train_on_inputs:
            raise DataError(
                "labels: training.train_on_inputs is true, but the labels already say where loss is taken; "
                "remove one of the two"
            )
        return ids, np.asarray(sample.labels, dtype=np.int32)


def _sides(sample: Sample) -> tuple[Single, ...]:
    return (sample.chosen, sample.rejected) if isinstance(sample, Pair) else (sample,)
