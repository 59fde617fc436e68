"""Where the parts run, on which models, and for how long."""

from __future__ import annotations

import contextlib
import gc
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

GIB = 2**30

_SHAPES: dict[str, dict[str, Any]] = {
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
    "small": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 4, "num_attention_heads": 8},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
}
_VOCABULARY = {"8B": 128256, "1B": 128256, "small": 8192, "tiny": 512}
_KEY_VALUE_HEADS = {"8B": 8, "1B": 8, "small": 4, "tiny": 2}
_SPREAD = {"8B": 0.02, "1B": 0.02, "small": 0.06, "tiny": 0.2}  # so large that training shows


class DeadlineError(Exception):
    """A part has used up its time."""


@dataclass(frozen=True)
class Setting:
    """What every part is given.

    Attributes:
        device: `cuda` or `cpu`.
        quick: Tiny models and few steps: does the benchmark itself work?
        ends: When this part's time is up, on the monotonic clock.
        emit: Takes the results, one dictionary each.
    """

    device: str
    quick: bool
    ends: float
    emit: Callable[[dict[str, Any]], None]

    @property
    def on_cuda(self) -> bool:
        """Whether there is a card."""
        return self.device == "cuda"

    @property
    def left(self) -> float:
        """Seconds that are left to this part."""
        return self.ends - time.monotonic()

    @property
    def large(self) -> str:
        """The largest model that goes onto the device beside its activations: 8B from 40 GB on."""
        if self.quick or not self.on_cuda:
            return "tiny"
        return "8B" if torch.cuda.get_device_properties(0).total_memory > 36 * GIB else "1B"

    @property
    def medium(self) -> str:
        """1B on a card."""
        return "tiny" if self.quick or not self.on_cuda else "1B"

    @property
    def small(self) -> str:
        """For what is compared in fp32."""
        return "tiny" if self.quick or not self.on_cuda else "small"

    def model(self, name: str, dtype: torch.dtype = torch.bfloat16) -> Any:
        """A LLaMA of random weights, made where it is needed; equal arguments give equal weights."""
        config = LlamaConfig(
            vocab_size=_VOCABULARY[name],
            num_key_value_heads=_KEY_VALUE_HEADS[name],
            max_position_embeddings=65536,
            initializer_range=_SPREAD[name],
            **_SHAPES[name],
        )
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(self.device):
                model = LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(before)
        return model.eval().requires_grad_(False)

    def wait(self) -> float:
        """The time, once all kernels have run."""
        if self.on_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise `DeadlineError` in here when the time is up, between two lines of Python."""

    def ring(_: int, __: FrameType | None) -> None:
        raise DeadlineError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def tidy() -> None:
    """Give back what the last part has left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
