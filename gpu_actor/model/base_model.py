"""The frozen base model of an actor: it makes adapters and runs shared batches.

The model is transformers' own; nothing of its forward is written here. Its linear layers become
`MultiAdapterLinear`, its attention goes to `packed_attention`, and its output head is run apart from its body.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gpu_actor.adapters.targets import as_peft_reads, plan_layers
from gpu_actor.adapters.weights import AdapterWeights, gradient_scale
from gpu_actor.batch.shared_batch import SharedBatch
from gpu_actor.contract.config import Quantization
from gpu_actor.contract.errors import BaseModelError
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.loading.layers import describe_model
from gpu_actor.loading.load_model import load_model
from gpu_actor.losses.objectives import SegmentLoss, segment_losses
from gpu_actor.model.body import HookedBody
from gpu_actor.model.freeze import freeze
from gpu_actor.model.output_head import head_only, with_few_rows_head
from gpu_actor.model.own_loss import check_own_loss
from gpu_actor.model.probe import Probe
from gpu_actor.model.serving import choose_serving
from gpu_actor.model.training_mode import follow_training_mode


class BaseModel:
    """One frozen base model that serves many adapters.

    Attributes:
        ref: How the jobs name it.
        model: The hooked transformers model.
        description: Names and sizes of its layers.
        body: The part that runs shared batches.
        remarks: What an operator should know (dropout that is left out, say).
    """

    def __init__(self, ref: str, model: nn.Module, *, kernels: str | None = None) -> None:
        """Hook a frozen causal language model, which is changed in place. Nothing is run or checked.

        Args:
            ref: How the jobs name it.
            model: Of transformers.
            kernels: The kind of device whose way of computing is taken (`cpu`, `cuda`); None: that of its own.

        Raises:
            BaseModelError: It has no linear layers.
        """
        self.ref = ref
        self.model: Any = model
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.description = describe_model(ref, model)
        self.remarks: list[str] = []
        self.body = HookedBody(model, kernels)
        if not self.body.layers:
            raise BaseModelError(f"base_model: {ref}: it has no linear layer that an adapter could change")
        self._head_model = head_only(self.model)
        self._answer_head = with_few_rows_head(self._head_model, self.model)

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
        """Load a base model from a folder, a .gguf file or the hub, and serve it; arguments as of `load_model`.

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
        return cls.serve(ref, model, gradient_checkpointing=gradient_checkpointing)

    @classmethod
    def serve(
        cls, ref: str, model: nn.Module, *, gradient_checkpointing: bool = False, kernels: str | None = None
    ) -> BaseModel:
        """Freeze and hook a loaded model, and choose how it is served by comparing it with what it gave before.

        Args:
            ref: How the jobs name it.
            model: Of transformers, changed in place.
            gradient_checkpointing: Keep each layer's input alone, and compute the layer again in the backward.
            kernels: As of the constructor.

        Raises:
            BaseModelError: It has no linear layers, is no causal language model, learns as none, or can be served in
                no way.
        """
        remarks = freeze(model, gradient_checkpointing=gradient_checkpointing)
        check_own_loss(ref, model)
        training_path = follow_training_mode(model)
        probe = Probe(ref, model)
        base = cls(ref, model, kernels=kernels)
        probe.check_head(base.head)
        unpacked = choose_serving(ref, base.body, probe, base.description)
        base.remarks = [f"{ref}: {remark}" for remark in (*remarks, training_path, unpacked) if remark is not None]
        return base

    @property
    def packed(self) -> bool:
        """Whether all sequences of a batch share one row; else each has a row of its own."""
        return self.body.packed

    @property
    def by_segment(self) -> bool:
        """Whether everything is computed segment by segment, so that no digit hangs on the company (CPU)."""
        return self.body.routing.by_segment

    def new_adapter(self, lora: LoraConfig, dtype: torch.dtype | None = None) -> AdapterWeights:
        """Zeroed weights for an adapter of this base; fp32 at least.

        Raises:
            InvalidJobError: `target_modules`, or another field that names modules, matches nothing or means experts.
        """
        plans = plan_layers(self.description, lora)
        hooked = {plan: self.body.layers[plan.name] for plan in plans}
        layers = {layer.index: (plan, layer.base) for plan, layer in hooked.items()}
        wide = dtype or torch.promote_types(self.dtype, torch.float32)
        exact = as_peft_reads(self.description, lora, plans)
        return AdapterWeights(exact, layers, self.device, wide, gradient_scale(self.dtype))

    def hidden(self, batch: SharedBatch) -> torch.Tensor:
        """Last hidden states [1, T, hidden] of a shared batch."""
        return self.body.hidden(batch)

    def losses(self, batch: SharedBatch) -> list[SegmentLoss]:
        """The losses of all segments of a shared batch, in its order."""
        return segment_losses(self.hidden(batch), batch, self.head, by_segment=self.by_segment)

    def rest(self) -> None:
        """Let go of the adapters of the latest forward: its backward is made, or will not be."""
        self.body.rest()

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """The model's own output head: hidden states [n, hidden] -> logits [n, vocabulary]."""
        return self._head_model(inputs_embeds=hidden[None], use_cache=False).logits[0]  # type: ignore[no-any-return]

    def next_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The same, of the latest tokens of answers: a few rows, which may round by their number."""
        return self._answer_head(inputs_embeds=hidden[None], use_cache=False).logits[0]  # type: ignore[no-any-return]

    def logits(self, batch: SharedBatch) -> torch.Tensor:
        """Logits [T, vocabulary] of every position of a shared batch, without gradients."""
        with torch.no_grad():
            return self.head(self.hidden(batch)[0])
