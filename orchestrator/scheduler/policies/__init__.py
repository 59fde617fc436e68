"""The policies by name. A new one is a file here and a line below."""

from __future__ import annotations

from orchestrator.scheduler.policies.base import Policy
from orchestrator.scheduler.policies.cosrpt import CoSrpt
from orchestrator.scheduler.policies.fifo import Fifo, FifoFour, FifoMemory
from orchestrator.scheduler.policies.srpt import Srpt

POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in (Fifo, FifoFour, FifoMemory, Srpt, CoSrpt)}
DEFAULT = CoSrpt.name
