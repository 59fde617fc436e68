"""The kinds of adapter. A new one is a file here and a line below; its arithmetic is a file and a line in operators."""

from __future__ import annotations

from gpu_actor.adapters.kinds.base import AdapterKind
from gpu_actor.adapters.kinds.dora import Dora
from gpu_actor.adapters.kinds.lora import Lora
from gpu_actor.adapters.kinds.pissa import Pissa
from gpu_actor.adapters.kinds.vera import Vera
from gpu_actor.contract.lora_config import LoraConfig

KINDS: tuple[type[AdapterKind], ...] = (
    Dora,
    Pissa,
    Vera,
    Lora,  # behind the special cases of it: it takes what they leave
)


def kind_of(lora: LoraConfig) -> AdapterKind:
    """The kind of adapter that a configuration asks for."""
    return next(kind for kind in KINDS if kind.matches(lora))(lora)
