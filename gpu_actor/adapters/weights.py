"""The values of one adapter: what is trained, in one flat buffer, and what stays frozen beside it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import cached_property

import torch
from torch import nn

from gpu_actor.adapters.dropout import mix_seed
from gpu_actor.adapters.kinds import kind_of
from gpu_actor.adapters.kinds.base import AdaptedLayer
from gpu_actor.adapters.layer_plan import LayerPlan
from gpu_actor.adapters.layout import Layout, Views
from gpu_actor.adapters.padding import Padding
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.loading.quantization import is_transposed

HALF_SCALE = 1024.0  # a power of two: it changes no digit


class AdapterWeights:
    """The trainable values of one adapter: every tensor is a view of one flat parameter.

    One flat buffer makes clip, optimizer step and zeroing a single call each, whatever the number of layers.

    Attributes:
        lora: Kind and shape.
        kind: The kind, which knows its tensors, starts and files.
        layout: Where the tensors lie in the flat buffer.
        flat: The parameter (padding between tensors stays zero).
        gradient: Its gradient, always allocated.
        layers: Layer index -> its trained tensors, views of `flat`, as `AdapterKind.trained` lists them.
        gradients: The same views of `gradient`.
        frozen: Layer index -> what is not trained, as `AdapterKind.make_frozen` makes it.
        shared: Frozen tensors that all layers share, by PEFT's names.
        plans: Layer index -> name, sizes, rank and scale.
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
        self.kind = kind_of(lora)
        self.dropout = lora.dropout
        self.plans = {index: plan for index, (plan, _) in layers.items()}
        self.transposed = any(is_transposed(base) for _, base in layers.values())
        self._bases = {index: base for index, (_, base) in layers.items()}
        self.layout = Layout.of({index: self.kind.trained(plan) for index, plan in self.plans.items()})
        self.flat = nn.Parameter(torch.zeros(self.layout.size, dtype=dtype, device=device))
        self.gradient = torch.zeros_like(self.flat.data)
        self.flat.grad = self.gradient
        self.gradient_scale = gradient_scale
        self.layers = self.layout.views(self.flat.data)
        self.gradients = self.layout.views(self.gradient)
        made = self.kind.make_shared(list(self.plans.values()))
        self.shared = {name: tensor.to(device=device, dtype=dtype) for name, tensor in made.items()}
        self.frozen: Views = {
            index: self.kind.make_frozen(plan, self.layers[index], self.shared) for index, plan in self.plans.items()
        }

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
        frozen = self.kind.frozen_values(list(self.plans.values()))
        return self.flat.element_size() * (4 * self.flat.numel() + frozen)

    @cached_property
    def padding(self) -> Padding:
        """This adapter with its ranks padded to a multiple of 8."""
        return Padding.of(self.kind, self.plans, self.layout)

    def adapted_layers(self) -> Iterator[AdaptedLayer]:
        """The tensors of every layer, in the model's order."""
        for index, plan in self.plans.items():
            yield AdaptedLayer(plan, self._bases[index], self.layers[index], self.frozen[index])

    def snapshot(self) -> AdapterWeights:
        """A copy of the values as they are now, to run and not to train; what is frozen is shared."""
        taken = copy.copy(self)
        values = self.flat.detach().clone()
        taken.flat = nn.Parameter(values, requires_grad=False)
        taken.layers = {
            index: tuple(values.as_strided(t.shape, t.stride(), t.storage_offset()) for t in tensors)
            for index, tensors in self.layers.items()
        }
        return taken

    def halves(self) -> tuple[nn.Parameter, nn.Parameter]:
        """The slow and the fast part of LoRA+ (arXiv 2402.12354) as parameters that share memory with `flat`."""
        slow, fast = slice(0, self.layout.fast_start), slice(self.layout.fast_start, None)
        parts = nn.Parameter(self.flat.data[slow]), nn.Parameter(self.flat.data[fast])
        for part, place in zip(parts, (slow, fast), strict=True):
            part.grad = self.gradient[place]
        return parts

    def initialise(self, seed: int) -> None:
        """Start as PEFT does with this `init_lora_weights`. The seed and the base decide it."""
        generator = torch.Generator().manual_seed(seed)
        for index, layer in zip(self.plans, self.adapted_layers(), strict=True):
            self.kind.start(layer, generator, mix_seed(seed, index))

    def reached(self) -> torch.Tensor:
        """bool [layers], in the order of `plans`: whether any gradient is not zero.

        Where all are, nothing that the loss sees depends on the adapter.
        """
        return torch.stack([torch.stack([g.any() for g in layer]).any() for layer in self.gradients.values()])

    def zero_grad(self) -> None:
        """Clear the gradient; the buffer stays, because the views point into it."""
        self.gradient.zero_()


def gradient_scale(dtype: torch.dtype) -> float:
    """How many times too large the gradients of a base model's hidden states are made, and all that follow from them.

    In float16 most of them would be below the smallest number: the share of a token in a vocabulary of 10^5 is 10^-5,
    over the number of tokens. `Tenant.take_step` takes the factor out again, in the adapter's own fp32.
    """
    return HALF_SCALE if dtype == torch.float16 else 1.0
