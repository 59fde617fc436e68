"""From one record to its labelled tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from gpu_actor.contract.config import DatasetConfig, TrainingConfig
from gpu_actor.contract.errors import DataError, UnfitDataError
from gpu_actor.contract.messages import shorten
from gpu_actor.data.formats import detect_format, read_fields, read_sample
from gpu_actor.data.readers.record import Record
from gpu_actor.data.records import Chat, Pair, Sample, Single, Tokens
from gpu_actor.data.samples import Labelled
from gpu_actor.data.tokenize import SampleEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RecordEncoder:
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
