"""The values of one adapter: what is trained, in one flat buffer, and what stays frozen beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from gpu_actor.adapters import start_values
from gpu_actor.adapters.dropout import mix_seed
from gpu_actor.adapters.shapes import TensorSpec, projection_shapes, trained_tensors
from gpu_actor.adapters.targets import LayerPlan
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.loading.quantization import dense_weight, is_transposed

_ALIGNMENT = 16  # values: each tensor starts on a 64-byte border of the flat buffer
Variant = Literal["lora", "pissa", "dora", "vera"]
Views = dict[int, tuple[torch.Tensor, ...]]

HALF_SCALE = 1024.0  # a power of two: it changes no digit


class AdapterWeights:
    """The trainable values of one adapter: every tensor is a view of one flat parameter.

    One flat buffer makes clip, optimizer step and zeroing a single call each, whatever the number of layers. Those
    tensors that LoRA+ trains faster lie behind the others.

    Attributes:
        lora: Kind and shape.
        variant: Which operator applies it.
        flat: The parameter (padding between tensors stays zero).
        gradient: Its gradient, always allocated.
        layers: Layer index -> its tensors, views of `flat`: (A [r, in], B [out, r]), for DoRA also the magnitudes
            [out]; for VeRA (lambda_b [out], lambda_d [r]).
        gradients: The same views of `gradient`.
        frozen: Layer index -> what is not trained: for PiSSA the start (A, B), for VeRA the layer's part of the
            shared matrices (A [r, in], B [out, r]); empty for the others.
        plans: Layer index -> name, sizes, rank and scale.
        projections: VeRA's shared matrices (A [r, widest in], B [widest out, r]); None for the others.
        transposed: The base layers keep [in, out] (Conv1D), which PEFT wants to know of an adapter.
    """

    def __init__(
        self,
        lora: LoraConfig,
        layers: Mapping[int, tuple[LayerPlan, nn.Module]],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        gradient_scale: float = 1.0,
    ) -> None:
        """Allocate zeros, and make what is frozen.

        Args:
            lora: Kind and shape.
            layers: Layer index -> its plan, and the frozen linear layer of the base.
            device: Where the values live.
            dtype: fp32, or fp64 in tests.
            gradient_scale: How many times too large the base's gradients are (`token_losses.gradient_scale`).
        """
        self.lora = lora
        self.variant = _variant(lora)
        self.dropout = lora.dropout
        self.plans = {index: plan for index, (plan, _) in layers.items()}
        self.transposed = any(is_transposed(base) for _, base in layers.values())
        self._bases = {index: base for index, (_, base) in layers.items()}
        specs = {index: trained_tensors(lora, plan) for index, plan in self.plans.items()}
        starts, self._fast_start, size = _lay_out(specs)
        self.flat = nn.Parameter(torch.zeros(size, dtype=dtype, device=device))
        self.gradient = torch.zeros_like(self.flat.data)
        self.flat.grad = self.gradient
        self.gradient_scale = gradient_scale
        self.layers = _views(specs, starts, self.flat.data)
        self.gradients = _views(specs, starts, self.gradient)
        self.projections: tuple[torch.Tensor, torch.Tensor] | None = None
        self.frozen = self._make_frozen(dtype, device)

    def _make_frozen(self, dtype: torch.dtype, device: torch.device) -> Views:
        if self.variant == "pissa":
            return {index: tuple(torch.zeros_like(t) for t in pair) for index, pair in self.layers.items()}
        if self.variant != "vera":
            return {}
        shapes = projection_shapes(self.lora, list(self.plans.values()))
        made = start_values.vera_projections(shapes, self.lora.projection_prng_key)
        a, b = (matrix.to(device=device, dtype=dtype) for matrix in made)
        self.projections = a, b
        return {index: (a[:, : plan.in_features], b[: plan.out_features]) for index, plan in self.plans.items()}

    @property
    def names(self) -> dict[int, str]:
        """Layer index -> module name."""
        return {index: plan.name for index, plan in self.plans.items()}

    @property
    def parameters(self) -> int:
        """Number of trainable values (the padding of the buffer left out)."""
        return sum(tensor.numel() for tensors in self.layers.values() for tensor in tensors)

    @property
    def bytes_in_training(self) -> int:
        """Bytes of the values, their gradient and AdamW's two moments, and of what is frozen."""
        frozen = self.projections or [tensor for tensors in self.frozen.values() for tensor in tensors]
        return self.flat.element_size() * (4 * self.flat.numel() + sum(tensor.numel() for tensor in frozen))

    def halves(self) -> tuple[nn.Parameter, nn.Parameter]:
        """The slow and the fast part of LoRA+ (arXiv 2402.12354) as parameters that share memory with `flat`."""
        slow, fast = slice(0, self._fast_start), slice(self._fast_start, None)
        parts = nn.Parameter(self.flat.data[slow]), nn.Parameter(self.flat.data[fast])
        for part, place in zip(parts, (slow, fast), strict=True):
            part.grad = self.gradient[place]
        return parts

    def initialise(self, seed: int) -> None:
        """Start as PEFT does with this `init_lora_weights`. The seed, and for PiSSA and DoRA the base, decide it."""
        generator = torch.Generator().manual_seed(seed)
        for index, tensors in self.layers.items():
            if self.variant == "vera":
                tensors[0].zero_()
                tensors[1].fill_(self.lora.d_initial)
            else:
                self._initialise_pair(index, generator, seed)

    def _initialise_pair(self, index: int, generator: torch.Generator, seed: int) -> None:
        plan, pair, start = self.plans[index], self.layers[index][:2], self.lora.init_lora_weights
        sizes = plan.rank, plan.in_features, plan.out_features
        if self.variant == "pissa":
            weight = dense_weight(self._bases[index])
            made = start_values.pissa(weight, plan, self.lora.pissa_rounds, mix_seed(seed, index))
            for frozen, value in zip(self.frozen[index], made, strict=True):
                frozen.copy_(value)
        elif start == "orthogonal":
            made = start_values.orthogonal(*sizes, generator)
        elif start == "gaussian":
            made = start_values.gaussian(*sizes, generator)
        else:
            made = start_values.kaiming(*sizes, generator)
        for tensor, value in zip(pair, made, strict=True):
            tensor.copy_(value)
        if self.variant == "dora":
            self.layers[index][2].copy_(self.weight_norm(index, self._bases[index]))

    def weight_norm(self, index: int, base: nn.Module) -> torch.Tensor:
        """Length of every output's weights, adapter included: the norm over the inputs of W + s B A, as [out]."""
        a, b = self.layers[index][:2]
        adapted = torch.mm(b, a).mul_(self.plans[index].scaling)
        adapted += dense_weight(base)  # a weight of fewer bits becomes no copy of its own
        return torch.linalg.vector_norm(adapted, dim=1)  # type: ignore[no-any-return]

    def zero_grad(self) -> None:
        """Clear the gradient; the buffer stays, because the views point into it."""
        self.gradient.zero_()


def _variant(lora: LoraConfig) -> Variant:
    if lora.peft_type == "VERA":
        return "vera"
    if lora.use_dora:
        return "dora"
    return "pissa" if lora.starts_from_base else "lora"


def _lay_out(specs: Mapping[int, tuple[TensorSpec, ...]]) -> tuple[dict[tuple[int, str], int], int, int]:
    """Where each tensor starts, where the fast ones begin, and how long the buffer is: all in values."""
    starts: dict[tuple[int, str], int] = {}
    size = fast_start = 0
    for fast in (False, True):
        fast_start = size
        for index, layer in specs.items():
            for spec in layer:
                if spec.fast is fast:
                    starts[index, spec.name] = size
                    size += -(-spec.values // _ALIGNMENT) * _ALIGNMENT
    return starts, fast_start, size


def _views(
    specs: Mapping[int, tuple[TensorSpec, ...]], starts: dict[tuple[int, str], int], flat: torch.Tensor
) -> Views:
    return {
        index: tuple(flat.narrow(0, starts[index, s.name], s.values).view(s.shape) for s in layer)
        for index, layer in specs.items()
    }


def gradient_scale(dtype: torch.dtype) -> float:
    """How many times too large the gradients of a base model's hidden states are made, and all that follow from them.

    In float16 most of them would be below the smallest number: the share of a token in a vocabulary of 10^5 is 10^-5,
    over the number of tokens. `Tenant.finish_step` takes the factor out again, in the adapter's own fp32.
    """
    return HALF_SCALE if dtype == torch.float16 else 1.0
