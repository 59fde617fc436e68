"""The arithmetic of many adapters on one frozen layer: a file per adapter kind, and a line in the table below."""

from __future__ import annotations

from collections.abc import Mapping

from gpu_actor.adapters.kinds.base import AdapterKind
from gpu_actor.adapters.kinds.dora import Dora
from gpu_actor.adapters.kinds.lora import Lora
from gpu_actor.adapters.kinds.pissa import Pissa
from gpu_actor.adapters.kinds.vera import Vera
from gpu_actor.operators.dora import DoraUpdate
from gpu_actor.operators.lora import LoraUpdate
from gpu_actor.operators.pissa import PissaUpdate
from gpu_actor.operators.update import Update
from gpu_actor.operators.vera import VeraUpdate

UPDATES: Mapping[type[AdapterKind], type[Update]] = {
    Lora: LoraUpdate,
    Pissa: PissaUpdate,
    Dora: DoraUpdate,
    Vera: VeraUpdate,
}
