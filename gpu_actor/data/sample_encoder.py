"""From a sample to its labelled tokens, whatever it is made of: text, a conversation, token ids, or a pair of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from gpu_actor.contract.config import DataSource, TrainingConfig
from gpu_actor.contract.errors import DataError, UnfitDataError
from gpu_actor.data.records import Chat, Pair, Sample, Single, Tokens, Unpaired
from gpu_actor.data.samples import Labelled
from gpu_actor.data.tokenize import TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SampleEncoder:
    """Turns the samples of one data set into token ids and labels."""

    def __init__(
        self,
        config: DataSource,
        training: TrainingConfig,
        tokenizer: Callable[[], PreTrainedTokenizerBase],
        vocab_size: int,
    ) -> None:
        """Nothing is loaded before the first sample.

        Args:
            config: `chat_template` is used.
            training: `train_on_inputs` is used.
            tokenizer: Gives the base model's tokenizer; not called for token ids.
            vocab_size: Number of tokens that the base model has.
        """
        self._template = config.chat_template
        self._train_on_inputs = training.train_on_inputs
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._text_encoder: TextEncoder | None = None

    @property
    def shortened(self) -> int:
        """Conversations so far in which the chat template left out a part of an answer (earlier turns' thoughts)."""
        return 0 if self._text_encoder is None else self._text_encoder.shortened

    def encode(self, sample: Sample) -> tuple[Labelled, ...]:
        """Token ids and labels of a sample, or of both sides of a pair.

        Raises:
            UnfitDataError: A chat template is given, and the sample is no conversation; or the template cannot be used.
            DataError: The sample cannot be encoded.
        """
        if isinstance(sample, Unpaired):
            return (self._encode(sample.answer),)
        sides = (sample.chosen, sample.rejected) if isinstance(sample, Pair) else (sample,)
        return tuple(map(self._encode, sides))

    def _encode(self, sample: Single) -> Labelled:
        if self._template is not None and not isinstance(sample, Chat):
            raise UnfitDataError(
                "dataset.chat_template is given, but these samples are no conversations; remove it, or write them as "
                "messages"
            )
        if isinstance(sample, Tokens):
            return self._with_labels(sample)
        if self._text_encoder is None:
            self._text_encoder = TextEncoder(self._tokenizer(), self._train_on_inputs, self._template)
        ids, labels = self._text_encoder.encode(sample)
        if len(ids) and ids.max() >= self._vocab_size:
            raise DataError(
                f"the tokenizer gives token {ids.max()}, but the base model knows only tokens below "
                f"{self._vocab_size}; the tokenizer does not belong to this model"
            )
        return ids, labels

    def _with_labels(self, sample: Tokens) -> Labelled:
        ids = np.asarray(sample.input_ids, dtype=np.int32)
        if sample.labels is None:
            return ids, ids
        if self._train_on_inputs:
            raise DataError(
                "labels: training.train_on_inputs is true, but the labels already say where loss is taken; "
                "remove one of the two"
            )
        return ids, np.asarray(sample.labels, dtype=np.int32)
