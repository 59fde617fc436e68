"""The test of a base model at load: is it causal, and does a way of serving it give its own outputs?

The reference is the stock model, not yet hooked, on a few short random sequences, one at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gpu_actor.batch.shared_batch import MicroBatch, SharedBatch, pack
from gpu_actor.contract.errors import BaseModelError
from gpu_actor.contract.messages import one_line
from gpu_actor.loading.layers import body_name

logger = logging.getLogger(__name__)

Forward = Callable[[SharedBatch], torch.Tensor]  # shared batch -> hidden states [1, T, hidden]

_LENGTHS = (19, 24, 11)
_PREFIX = 8  # tokens that are run without what follows them
# In two ways of computing, a model agrees to rounding. The probe must catch sequences that see each other, a mask or
# a bias that is lost: all of them are gross. (Models of fp64 compute their attention or positions in fp32 in places.)
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.05}

_INT8_TOLERANCE = 0.15


class Probe:
    """Short random sequences and the stock model's hidden states of them."""

    def __init__(self, ref: str, model: Any) -> None:
        """Run the stock model, frozen and not yet hooked.

        Raises:
            BaseModelError: It does not run, or is no causal language model.
        """
        self._name = f"base_model: {ref}: a {model.config.model_type} model"
        parameter = next(model.parameters())
        self._device = parameter.device
        self._tolerance = _TOLERANCE[parameter.dtype]
        if getattr(model, "is_loaded_in_8bit", False):  # unhooked, it also quantises its inputs (measured: 3e-2)
            self._tolerance = max(self._tolerance, _INT8_TOLERANCE)
        if model.config.is_encoder_decoder:
            raise BaseModelError(
                f"{self._name} has an encoder and a decoder; Loray trains causal (decoder-only) language models"
            )
        random = np.random.default_rng(0)
        vocabulary = model.config.get_text_config().vocab_size
        self._ids = [random.integers(0, vocabulary, length, dtype=np.int32) for length in _LENGTHS]
        try:
            self._expected = [self._alone(model, ids) for ids in self._ids]
            prefix = self._alone(model, self._ids[0][:_PREFIX])
            with torch.no_grad():
                self._logits = model(input_ids=self._on_device(self._ids[0]), use_cache=False).logits[0]
        except Exception as error:
            raise BaseModelError(
                f"{self._name} does not run ({one_line(error)}); use another dtype or another base model"
            ) from error
        if not self._relative(prefix, self._expected[0][:_PREFIX]) <= self._tolerance:
            raise BaseModelError(f"{self._name} sees tokens that come later; Loray trains causal language models")

    def check_head(self, head: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """The output head, run apart from the body, must give the stock model's logits.

        Raises:
            BaseModelError: It does not.
        """
        try:
            with torch.no_grad():
                difference = self._relative(head(self._expected[0]), self._logits)
        except Exception as error:
            logger.info("the head of a base model raised an error: %s", one_line(error), exc_info=error)
            raise BaseModelError(
                f"{self._name} has a head that does not run on the hidden states alone; use another base model"
            ) from error
        if not difference <= self._tolerance:
            raise BaseModelError(f"{self._name} computes its logits from more than the last hidden states of its body")

    def run_each(self, forward: Forward) -> None:
        """Run every sequence alone through a way of serving; it raises where it meets what it cannot do."""
        with torch.no_grad():
            for ids in self._ids:
                forward(self._batch([[ids]]))

    def difference(self, forward: Forward) -> str | None:
        """What is wrong with a way of serving, in words; None if it gives the stock model's hidden states."""
        first, *rest = self._ids
        try:
            with torch.no_grad():
                hidden = forward(self._batch([rest, [first]]))[0].split([len(ids) for ids in (*rest, first)])
        except Exception as error:
            return one_line(error)
        expected = [*self._expected[1:], self._expected[0]]
        largest = max(self._relative(*pair) for pair in zip(hidden, expected, strict=True))
        if largest <= self._tolerance:
            return None
        return (
            f"its outputs differ from those of the stock model by {largest:.1e} of the largest value, as when "
            f"sequences see each other or a mask is lost"
        )

    def _batch(self, micro_batches: list[list[Any]]) -> SharedBatch:
        """Micro-batches of the bare base model."""
        return pack([MicroBatch(None, ids, ids) for ids in micro_batches], self._device)

    def _alone(self, model: Any, ids: Any) -> torch.Tensor:
        """The stock model's last hidden states [length, hidden] of one sequence."""
        body = model.get_submodule(body_name(model))
        with torch.no_grad():
            return body(input_ids=self._on_device(ids), use_cache=False).last_hidden_state[0]  # type: ignore[no-any-return]

    def _on_device(self, ids: Any) -> torch.Tensor:
        return torch.from_numpy(ids.astype(np.int64))[None].to(self._device)

    @staticmethod
    def _relative(computed: torch.Tensor, expected: torch.Tensor) -> float:
        """The largest difference, as a share of the largest expected value; NaN counts as infinite."""
        share = ((computed - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()
        return share if share == share else float("inf")
