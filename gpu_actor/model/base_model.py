"""The frozen base model of an actor: load, freeze, hook, probe.

The model is transformers' own; nothing of its forward is written here. Its linear layers become
`MultiAdapterLinear`, its attention goes to `packed_attention`, and its output head is run apart from its body.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from gpu_actor.adapters.targets import plan_layers
from gpu_actor.adapters.weights import AdapterWeights, gradient_scale
from gpu_actor.batch.body_inputs import Piece, packed_by_segment, padded_by_segment, whole
from gpu_actor.batch.shared_batch import SharedBatch
from gpu_actor.contract.config import Quantization
from gpu_actor.contract.errors import BaseModelError
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.contract.messages import one_line
from gpu_actor.loading.layers import adaptable_linears, describe_model
from gpu_actor.loading.load_model import load_model
from gpu_actor.model.attention import WindowsSeen, register_packed_attention
from gpu_actor.model.freeze import freeze
from gpu_actor.model.output_head import head_only
from gpu_actor.model.probe import Probe, unhooked_products
from gpu_actor.model.rotary import hook_rotary
from gpu_actor.operators.multi_adapter_linear import MultiAdapterLinear
from gpu_actor.operators.routing import Routing, SegmentwiseActivation

_instances = itertools.count()


class BaseModel:
    """One frozen base model that serves many adapters.

    Attributes:
        ref: How the jobs name it.
        model: The hooked transformers model.
        description: Names and sizes of its layers.
        packed: Whether all sequences of a batch share one row; else each has a row of its own.
        remarks: What an operator should know (dropout that is left out, say).
    """

    def __init__(self, ref: str, model: nn.Module, *, gradient_checkpointing: bool = False) -> None:
        """Hook and probe a loaded causal language model. The model is changed in place.

        Raises:
            BaseModelError: It has no linear layers, is no causal language model, or can be served in no way.
        """
        self.ref = ref
        self.model: Any = model
        self.packed = False
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.description = describe_model(ref, model)
        self.remarks = [f"{ref}: {remark}" for remark in freeze(model, gradient_checkpointing=gradient_checkpointing)]
        self._routing = Routing(self.device)
        self._pieces: Callable[[SharedBatch], list[Piece]] = whole
        probe = self._reference()
        self._layers = self._hook()
        self._head_model = head_only(self.model)
        self._choose_serving(probe)

    @classmethod
    def load(
        cls,
        ref: str,
        device: str = "cpu",
        dtype: str = "float32",
        *,
        gradient_checkpointing: bool = False,
        quantization: Quantization | None = None,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
    ) -> BaseModel:
        """Load a base model from a folder, a .gguf file or the hub, and hook it; arguments as of `load_model`.

        Raises:
            BaseModelError: It cannot be loaded, or not be served; the message says why.
        """
        model = load_model(
            ref,
            device,
            dtype,
            quantization=quantization,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
        )
        return cls(ref, model, gradient_checkpointing=gradient_checkpointing)

    def new_adapter(self, lora: LoraConfig, dtype: torch.dtype | None = None) -> AdapterWeights:
        """Zeroed weights for an adapter of this base; fp32 at least.

        Raises:
            InvalidJobError: `target_modules`, or another field that names modules, matches nothing or means experts.
        """
        plans = plan_layers(self.description, lora)
        layers = {self._layers[plan.name].index: (plan, self._layers[plan.name].base) for plan in plans}
        wide = dtype or torch.promote_types(self.dtype, torch.float32)
        return AdapterWeights(lora, layers, self.device, wide, gradient_scale(self.dtype))

    def hidden(self, batch: SharedBatch) -> torch.Tensor:
        """Last hidden states [1, T, hidden] of a shared batch, packed, however the model was run."""
        # Autograd works off the latest forward first. Run from the back, an adapter's micro-batches add to its gradient
        # in their own order, as they do in one packed row and in separate batches: the sums agree to the bit.
        parts = [self._run(piece) for piece in reversed(self._pieces(batch))]
        return parts[0] if len(parts) == 1 else torch.cat(parts[::-1], dim=1)

    def rest(self) -> None:
        """Let go of the adapters of the latest forward: its backward is made, or will not be."""
        self._routing.begin((), (), False)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """The model's own output head: hidden states [n, hidden] -> logits [n, vocabulary]."""
        return self._head_model(inputs_embeds=hidden[None], use_cache=False).logits[0]  # type: ignore[no-any-return]

    def logits(self, batch: SharedBatch) -> torch.Tensor:
        """Logits [T, vocabulary] of every position of a shared batch, without gradients."""
        with torch.no_grad():
            return self.head(self.hidden(batch)[0])

    def _run(self, piece: Piece) -> torch.Tensor:
        """One forward of the body: [1, real tokens, hidden]."""
        self._routing.begin(piece.segments, piece.lengths, piece.attention_mask is not None)
        given = {"position_ids": piece.position_ids, "attention_mask": piece.attention_mask}
        output = self.model.base_model(
            input_ids=piece.input_ids,
            use_cache=False,
            **{name: value for name, value in given.items() if value is not None},
        )
        return piece.real(self._routing.remembered(output.last_hidden_state))

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
        hook_rotary(self.model, self._routing)
        return layers

    def _reference(self) -> Probe:
        """What the stock model gives; taken before it is hooked."""
        return Probe(self.ref, self.model, self.device, self.dtype)

    def _choose_serving(self, probe: Probe) -> None:
        """Pack if the probe finds that this model can be packed, else one sequence per row.

        Raises:
            BaseModelError: It can be served neither way.
        """
        probe.check_head(self.head)
        own_attention = self.model.config._attn_implementation
        why_not_packed = self._try_packed(probe)
        if why_not_packed is None:
            self.packed = True
            return
        self._pieces = padded_by_segment
        self.model.set_attn_implementation(own_attention)
        why_not_padded = probe.difference(self.hidden)
        kind = self.description.model_type
        if why_not_padded is not None:
            raise BaseModelError(
                f"base_model: {self.ref}: a {kind} model cannot be served. Packed into one row: {why_not_packed}; one "
                f"sequence per row: {why_not_padded}. Use another base model"
            )
        self.remarks.append(
            f"{self.ref}: sequences of a {kind} model cannot be packed ({why_not_packed}); they run one per row, "
            f"padded, in one forward per micro-batch, which is exact but slower"
        )

    def _use_packed_attention(self) -> WindowsSeen:
        name = f"loray_packed_{next(_instances)}"
        routing = self._routing  # not the base model itself: what is registered stays as long as the process
        seen = register_packed_attention(name, lambda: routing.lengths)
        self.model.set_attn_implementation(name)
        return seen

    def _try_packed(self, probe: Probe) -> str | None:
        """Let the model use packed attention; what the probe has against it, in words."""
        # where kernels may round a row by its company, layers that Loray does not hook (experts) get one segment each
        apart = self._routing.by_segment and unhooked_products(self.model)
        self._pieces = packed_by_segment if apart else whole
        try:
            seen = self._use_packed_attention()
            probe.run_each(self.hidden)
            seen.check()
            seen.close()
        except Exception as error:
            return one_line(error)
        return probe.difference(self.hidden)
