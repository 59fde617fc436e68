"""The model's own output head, called with hidden states that were computed elsewhere."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput


@dataclass
class BodyOutput(ModelOutput):  # type: ignore[misc]
    """What the causal models of transformers read of their bodies' outputs."""

    last_hidden_state: torch.Tensor | None = None
    past_key_values: None = None
    hidden_states: None = None
    attentions: None = None
    cross_attentions: None = None
    router_logits: None = None


class GivenHiddenStates(nn.Module):
    """Stands in for a model's body: hands on the hidden states that it is given."""

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> BodyOutput:
        """inputs_embeds [1, n, hidden] -> the same as last hidden state."""
        return BodyOutput(last_hidden_state=inputs_embeds)

    @property
    def decoder(self) -> GivenHiddenStates:
        """OPT's causal model calls the decoder of its body."""
        return self


def head_only(model: Any) -> Any:
    """A view of a causal language model, sharing its parameters, whose body is skipped.

    So the model's own code after the body (head, soft-cap, logit scale) runs on any chunk of hidden states.
    """
    head = copy.copy(model)
    head._modules = {**model._modules, model.base_model_prefix: GivenHiddenStates()}
    return head
