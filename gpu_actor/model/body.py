"""The body of a base model, hooked in place: it runs a shared batch, every segment with its adapter."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from gpu_actor.batch.body_inputs import BodyInput, packed_by_segment, padded_by_segment, whole
from gpu_actor.batch.shared_batch import SharedBatch
from gpu_actor.elementwise.fuse import fuse_elementwise
from gpu_actor.loading.layers import adaptable_linears, body_name
from gpu_actor.model.attention import AttentionCache, WindowsSeen, register_packed_attention
from gpu_actor.model.flex import CappedAttention
from gpu_actor.model.rotary import hook_rotary
from gpu_actor.model.varlen import has_varlen
from gpu_actor.operators.multi_adapter_linear import MultiAdapterLinear
from gpu_actor.operators.routing import Routing, SegmentwiseActivation

_instances = itertools.count()


class HookedBody:
    """A causal language model of transformers up to its last hidden states.

    At first every sequence has a row of its own and the model's attention stays as it is, which any model can do.

    Attributes:
        device: Where its weights are.
        layers: Module name -> hooked linear layer, in the model's order.
        packed: Whether all sequences of a batch share one row; else each has a row of its own.
        routing: What its hooked layers ask about the forward that is running.
    """

    def __init__(self, model: Any, kernels: str | None = None) -> None:
        """Hook a frozen model. It is changed in place.

        Args:
            model: A causal language model of transformers.
            kernels: The kind of device whose way of computing is taken (`cpu`, `cuda`); None: that of its own.
        """
        self.model = model
        parameter = next(model.parameters())
        self.device = parameter.device
        self._kernels = kernels or self.device.type
        self.routing = Routing(self.device, parameter.dtype, kernels)
        self._caches: list[AttentionCache] = []  # that of the forward that is running, if it has one
        self.layers = _hook(model, self.routing)
        self.packed = False
        self._inputs_of: Callable[[SharedBatch], list[BodyInput]] = padded_by_segment
        self._body = model.get_submodule(body_name(model))
        self._stock_attention = model.config._attn_implementation

    def pack(self) -> WindowsSeen:
        """From now on all sequences share one row, with packed attention.

        Returns:
            What the model asks of its attention; it is recorded until it is closed.
        """
        # where kernels may round a row by its company, layers that Loray does not hook (experts) get one segment each
        apart = self.routing.by_segment and _unhooked_products(self.model)
        self._inputs_of = packed_by_segment if apart else whole
        self.packed = True
        name = f"loray_packed_{next(_instances)}"
        # not the body itself: what is registered stays as long as the process
        routing, caches = self.routing, self._caches
        on_cuda = self._kernels == "cuda"
        borders = (lambda: routing.borders) if on_cuda and has_varlen(self.device) else None
        seen = register_packed_attention(
            name,
            lambda: routing.lengths,
            borders,
            lambda: caches[-1] if caches else None,
            CappedAttention(compiles=self.device.type == "cuda") if on_cuda else None,
        )
        self.model.set_attn_implementation(name)
        return seen

    def pad(self) -> None:
        """From now on every sequence has a row of its own again, with the model's attention."""
        self._inputs_of = padded_by_segment
        self.packed = False
        self.model.set_attn_implementation(self._stock_attention)

    def hidden(self, batch: SharedBatch, change: Callable[[BodyInput], BodyInput] | None = None) -> torch.Tensor:
        """Last hidden states [1, T, hidden] of a shared batch, packed, however the model was run.

        Args:
            batch: What is computed.
            change: Applied to the input of each forward of the model: a test of the padding fills it.
        """
        # Autograd works off the latest forward first. Run from the back, an adapter's micro-batches add to its gradient
        # in their own order, as they do in one packed row and in separate batches: the sums agree to the bit.
        inputs = self._inputs_of(batch) if change is None else map(change, self._inputs_of(batch))
        parts = [self._run(given) for given in reversed(list(inputs))]
        return parts[0] if len(parts) == 1 else torch.cat(parts[::-1], dim=1)

    def hidden_with(self, cache: AttentionCache, batch: SharedBatch) -> torch.Tensor:
        """The same of a packed body, in one forward that keeps keys and values, or goes on from kept ones.

        All rows are multiplied with the base weights at once, on a CPU too: so a token may be rounded by its company,
        which no gradient may, and eight answers take hardly longer than one.
        """
        (given,) = whole(batch)
        self._caches.append(cache)
        self.routing.together = True
        try:
            return self._run(given)
        finally:
            self.routing.together = False
            self._caches.clear()
            self.rest()

    def rest(self) -> None:
        """Let go of the adapters of the latest forward: its backward is made, or will not be."""
        self.routing.begin((), (), False)

    def _run(self, given: BodyInput) -> torch.Tensor:
        """One forward: [1, real tokens, hidden]."""
        self.routing.begin(given.segments, given.lengths, given.attention_mask is not None, given.borders, given.tables)
        optional = {"position_ids": given.position_ids, "attention_mask": given.attention_mask}
        output = self._body(
            input_ids=given.input_ids,
            use_cache=False,
            **{name: value for name, value in optional.items() if value is not None},
        )
        return given.real(self.routing.remembered(output.last_hidden_state))


def _hook(model: Any, routing: Routing) -> Mapping[str, MultiAdapterLinear]:
    """Replace the linear layers of a model, and what may round or count by its company; returns the linear layers."""
    fuse_elementwise(model, recompute=not routing.by_segment)
    linears = adaptable_linears(model)
    layers = {name: MultiAdapterLinear(module, i, routing) for i, (name, module) in enumerate(linears.items())}
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    if routing.by_segment:
        for name, module in list(model.named_modules()):
            if type(module).__module__ in ("transformers.activations", "torch.nn.modules.activation"):
                model.set_submodule(name, SegmentwiseActivation(module, routing))
    hook_rotary(model, routing)
    return layers


def _unhooked_products(model: Any) -> list[str]:
    """Weights that rows are multiplied with outside hooked layers and output head: experts, routers, filters."""
    handled: set[int] = {id(parameter) for parameter in _parameters(model.get_output_embeddings())}
    for module in model.modules():
        if isinstance(module, (MultiAdapterLinear, nn.Embedding)):
            handled.update(id(parameter) for parameter in _parameters(module))
    return [name for name, value in model.named_parameters() if value.dim() > 1 and id(value) not in handled]


def _parameters(module: nn.Module | None) -> list[nn.Parameter]:
    return [] if module is None else list(module.parameters())
