"""How many bytes one token leaves behind for the backward pass: counted, not guessed, without any weights.

The model is built from its configuration on fake tensors, which have shapes and no values, hooked as an actor hooks it,
and run forward; autograd tells what it keeps. So every family's own code decides, fused layers, gates, soft-caps and
norms included.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from gpu_actor.adapters.layer_plan import LayerPlan
from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.batch.shared_batch import MicroBatch, pack
from gpu_actor.contract.description import Activations
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.contract.messages import one_line
from gpu_actor.loading.model_class import auto_class
from gpu_actor.model.base_model import BaseModel
from gpu_actor.model.freeze import freeze

logger = logging.getLogger(__name__)

_LENGTH = 64
_RANK = 8


def count_activations(config: Any, *, trust_remote_code: bool = False) -> Activations | None:
    """What the forward of a model with this configuration keeps, in fp32 and in 16 bits; None if it cannot be run so.

    Args:
        config: The `transformers` configuration.
        trust_remote_code: Let the model's own Python code run.
    """
    wide = count_in(torch.float32, config, trust_remote_code=trust_remote_code)
    if wide is None:
        return None
    half = count_in(torch.bfloat16, config, squares=wide.square_bytes > 0, trust_remote_code=trust_remote_code)
    return replace(wide, half=half)


def count_in(
    dtype: torch.dtype, config: Any, *, squares: bool = True, trust_remote_code: bool = False
) -> Activations | None:
    """What the forward keeps in one dtype: in fp32 as a CPU computes, in 16 bits as a GPU does.

    Args:
        dtype: Of the model.
        config: The `transformers` configuration.
        squares: Whether attention may keep something for each pair of tokens; False saves a forward.
        trust_remote_code: Let the model's own Python code run.

    Returns:
        None if the model cannot run on fake tensors.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with _quiet_kernels(), FakeTensorMode(allow_non_fake_inputs=True):
            model = auto_class(config).from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
            freeze(model)
            base = BaseModel("fake", model, kernels="cpu" if dtype is torch.float32 else "cuda")
            base.body.pack().close()  # unchecked: without values packed and padded cannot be compared
            short = _kept(base, (_LENGTH, _LENGTH), _RANK)
            long = _kept(base, (2 * _LENGTH,), _RANK) if squares else short
            own = _kept(base, (_LENGTH, _LENGTH), 2 * _RANK) - short  # what an adapter keeps grows with its rank
            head = _kept_by_head(base)
    except Exception as error:  # whatever a model does that needs values
        logger.info(
            "activations of a %s model cannot be counted in %s (%s); they are estimated from its layers' sizes",
            config.model_type,
            dtype,
            one_line(error),
        )
        return None
    square = max(0.0, (long - short) / (2 * _LENGTH**2))  # equal tokens, twice the sum of squared lengths
    return Activations((short - own - square * 2 * _LENGTH**2) / (2 * _LENGTH), square, head)


@contextmanager
def _quiet_kernels() -> Iterator[None]:
    """Keep torch from printing the trace of a kernel that cannot run on fake tensors; the error is raised as well."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _kept(base: BaseModel, lengths: tuple[int, ...], rank: int) -> int:
    """Bytes that autograd keeps of a forward over sequences of these lengths, with an adapter of this rank."""
    layers = {  # every linear layer, those that no job may name too: its input is kept for an adapter's gradient
        (layer := base.body.layers[shape.name]).index: (
            LayerPlan(shape.name, shape.in_features, shape.out_features, rank, scaling=1.0),
            layer.base,
        )
        for shape in base.description.linears
    }
    adapter = AdapterWeights(LoraConfig(r=rank), layers, base.device)
    ids = [np.ones(length, dtype=np.int32) for length in lengths]
    batch = pack([MicroBatch(weights=adapter, sequences=ids, labels=ids)], base.device)
    with _Keeper(base, adapter.flat, adapter.gradient) as keeper:
        base.hidden(batch)
    return keeper.bytes


def _kept_by_head(base: BaseModel) -> float:
    """Bytes per position that autograd keeps of the output head, its input and weights left out."""
    width = base.model.get_output_embeddings().weight.shape[1]  # OPT projects the hidden states down to it
    hidden = torch.zeros(_LENGTH, width, device=base.device, dtype=base.dtype, requires_grad=True)
    with _Keeper(base, hidden) as keeper:
        base.head(hidden)
    return keeper.bytes / _LENGTH


class _Keeper:
    """Counts every storage that autograd keeps, once; those of the model and of other given tensors are left out."""

    def __init__(self, base: BaseModel, *others: torch.Tensor) -> None:
        of_model = [*base.model.parameters(), *base.model.buffers(), *others]
        self._left_out = {tensor.untyped_storage()._cdata for tensor in of_model}
        self._kept: list[torch.Tensor] = []  # alive, so that no two storages have one address
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        self._kept.append(tensor)
        return tensor

    def __enter__(self) -> _Keeper:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)  # type: ignore[arg-type]

    @property
    def bytes(self) -> int:
        """Of all that was kept."""
        storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in self._kept}
        return sum(storage.nbytes() for address, storage in storages.items() if address not in self._left_out)
