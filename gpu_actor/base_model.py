"""The frozen base model of an actor: load, freeze, hook, probe.

The model is transformers' own; nothing of its forward is written here. Its linear layers become
`MultiAdapterLinear`, its attention goes to `packed_attention`, and its output head is run apart from its body.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from gpu_actor.adapter_weights import AdapterWeights
from gpu_actor.attention import register_packed_attention
from gpu_actor.batch import MicroBatch, SharedBatch, pack
from gpu_actor.errors import BaseModelError
from gpu_actor.inspect_base import adaptable_linears, describe_model, one_line
from gpu_actor.load_base import load_model
from gpu_actor.lora import MultiAdapterLinear
from gpu_actor.lora_config import LoraConfig
from gpu_actor.routing import Routing, SegmentwiseActivation
from gpu_actor.targets import plan_layers

_instances = itertools.count()
_PROBE_LENGTHS = (19, 24)
# Packed and apart, a model agrees to rounding. The probe must catch sequences that see each other, which is gross.
_PROBE_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.05}


class BaseModel:
    """One frozen base model that serves many adapters.

    Attributes:
        ref: How the jobs name it.
        model: The hooked transformers model.
        description: Names and sizes of its layers.
        remarks: What an operator should know (dropout that is left out, say).
    """

    def __init__(self, ref: str, model: nn.Module, *, gradient_checkpointing: bool = False) -> None:
        """Hook and probe a loaded causal language model. The model is changed in place.

        Raises:
            BaseModelError: It has no linear layers, or its sequences cannot be packed.
        """
        self.ref = ref
        self.model: Any = model
        self.remarks: list[str] = []
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.description = describe_model(ref, model)
        self._lengths: tuple[int, ...] = ()
        self._routing = Routing(self.device)
        self._freeze(gradient_checkpointing)
        self._layers = self._hook()
        self._head_model = _head_only(self.model)
        self._probe()

    @classmethod
    def load(
        cls,
        ref: str,
        device: str = "cpu",
        dtype: str = "float32",
        *,
        gradient_checkpointing: bool = False,
        trust_remote_code: bool = False,
    ) -> BaseModel:
        """Load a base model from a folder or the hub; weights are read from safetensors only.

        Raises:
            BaseModelError: It cannot be loaded, or not be served; the message says why.
        """
        model = load_model(ref, device, dtype, trust_remote_code=trust_remote_code)
        return cls(ref, model, gradient_checkpointing=gradient_checkpointing)

    def new_adapter(self, lora: LoraConfig, dtype: torch.dtype | None = None) -> AdapterWeights:
        """Zeroed weights for an adapter of this base; fp32 at least.

        Raises:
            InvalidJobError: `target_modules`, or another field that names modules, matches nothing.
        """
        plans = plan_layers(self.description.linears, lora)
        layers = {self._layers[plan.name].index: (plan, self._layers[plan.name].base) for plan in plans}
        return AdapterWeights(lora, layers, self.device, dtype or torch.promote_types(self.dtype, torch.float32))

    def hidden(self, batch: SharedBatch) -> torch.Tensor:
        """Last hidden states [1, T, hidden] of a shared batch; one forward for all its adapters."""
        self._lengths = batch.lengths
        self._routing.segments = batch.segments
        body = self.model.base_model
        output = body(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
        return output.last_hidden_state  # type: ignore[no-any-return]

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """The model's own output head: hidden states [n, hidden] -> logits [n, vocabulary]."""
        return self._head_model(inputs_embeds=hidden[None], use_cache=False).logits[0]  # type: ignore[no-any-return]

    def logits(self, batch: SharedBatch) -> torch.Tensor:
        """Logits [T, vocabulary] of every position of a shared batch, without gradients."""
        with torch.no_grad():
            return self.head(self.hidden(batch)[0])

    def _freeze(self, gradient_checkpointing: bool) -> None:
        self.model.requires_grad_(False)
        self.model.eval()
        dropouts = [module for module in self.model.modules() if isinstance(module, nn.Dropout) and module.p > 0]
        if dropouts:
            self.remarks.append(f"{self.ref}: the base model's own dropout (p={dropouts[0].p}) is switched off")
        for module in dropouts:
            module.p = 0.0
        if gradient_checkpointing:
            # transformers checkpoints only in training mode; with every dropout at 0 it changes nothing else
            self.model.train()
            self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def _hook(self) -> Mapping[str, MultiAdapterLinear]:
        linears = adaptable_linears(self.model)
        if not linears:
            raise BaseModelError(f"base_model: {self.ref}: it has no linear layer that an adapter could change")
        layers = {name: MultiAdapterLinear(m, i, self._routing) for i, (name, m) in enumerate(linears.items())}
        for name, layer in layers.items():
            self.model.set_submodule(name, layer)
        if self._routing.by_segment:
            for name, module in list(self.model.named_modules()):
                if type(module).__module__ in ("transformers.activations", "torch.nn.modules.activation"):
                    self.model.set_submodule(name, SegmentwiseActivation(module, self._routing))
        attention = f"loray_packed_{next(_instances)}"
        register_packed_attention(attention, lambda: self._lengths)
        self.model.set_attn_implementation(attention)
        return layers

    def _probe(self) -> None:
        """Two random sequences must give the same hidden states packed and apart."""
        random = np.random.default_rng(0)
        ids = [random.integers(0, self.description.vocab_size, n, dtype=np.int32) for n in _PROBE_LENGTHS]
        try:
            with torch.no_grad():
                packed = self.hidden(_bare(ids, self.device))[0]
                apart = torch.cat([self.hidden(_bare([one], self.device))[0] for one in ids])
        except Exception as error:
            raise BaseModelError(
                f"base_model: {self.ref}: a {self.description.model_type} model cannot run packed sequences "
                f"({one_line(error)})"
            ) from error
        scale = apart.abs().max().clamp(min=1e-6)
        difference = float(((packed - apart).abs().max() / scale).item())
        if not difference <= _PROBE_TOLERANCE[self.dtype]:
            raise BaseModelError(
                f"base_model: {self.ref}: packed sequences of a {self.description.model_type} model see each other "
                f"(their outputs differ by {difference:.1e} of the largest value); this architecture is not supported"
            )


class _GivenHiddenStates(nn.Module):
    """Stands in for a model's body: hands on the hidden states that it is given."""

    def forward(self, inputs_embeds: torch.Tensor, **_: Any) -> BaseModelOutputWithPast:
        """inputs_embeds [1, n, hidden] -> the same as last hidden state."""
        return BaseModelOutputWithPast(last_hidden_state=inputs_embeds)


def _head_only(model: Any) -> Any:
    """A view of a causal language model, sharing its parameters, whose body is skipped.

    So the model's own code after the body (head, soft-cap, logit scale) runs on any chunk of hidden states.
    """
    head = copy.copy(model)
    head._modules = {**model._modules, model.base_model_prefix: _GivenHiddenStates()}
    return head


def _bare(sequences: list[Any], device: torch.device) -> SharedBatch:
    return pack([MicroBatch(weights=None, sequences=sequences, labels=sequences)], device)
