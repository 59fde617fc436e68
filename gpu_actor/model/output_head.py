"""The model's own output head, called with hidden states that were computed elsewhere."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from gpu_actor.loading.layers import body_name
from gpu_actor.operators.few_rows import FewRowsLinear


@dataclass
class BodyOutput(ModelOutput):  # type: ignore[misc]
    """What a body gives its causal model: the last hidden states, and None for whatever else it may be asked for.

    Caches, router logits, image features, ... concern no logits, and the probe compares the logits.
    """

    last_hidden_state: torch.Tensor | None = None

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class GivenHiddenStates(nn.Module):
    """Stands in for a model's body: hands on the hidden states that it is given.

    Its other attributes are those of the body (falcon_h1 keeps the scale of its logits there).
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.__dict__["_body"] = body  # no child: its parameters are the model's

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> BodyOutput:
        """inputs_embeds [1, n, hidden] -> the same as last hidden state."""
        return BodyOutput(last_hidden_state=inputs_embeds)

    @property
    def decoder(self) -> GivenHiddenStates:
        """OPT's causal model calls the decoder of its body."""
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_body"], name)


def head_only(model: Any) -> Any:
    """A view of a causal language model, sharing its parameters, whose body is skipped.

    So the model's own code after the body (head, soft-cap, logit scale) runs on any chunk of hidden states.
    """
    name = body_name(model)
    head = copy.copy(model)
    head._modules = {**model._modules, name: GivenHiddenStates(model.get_submodule(name))}
    return head


def with_few_rows_head(head_model: Any, model: Any) -> Any:
    """A view of what `head_only` gave of a model, whose output head is made for few rows, if it is a plain layer."""
    head = model.get_output_embeddings()
    names = [name for name, module in head_model._modules.items() if module is head]
    if type(head) is not nn.Linear or not names:
        return head_model
    view = copy.copy(head_model)
    view._modules = {**head_model._modules, names[0]: FewRowsLinear(head)}
    return view
