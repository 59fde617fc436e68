"""The actor as Ray sees it: a shell that answers at once while the working actor is still being imported.

`orchestrator.cluster.fleet` wraps the class for Ray. Importing this module loads no torch, because the orchestrator
imports it too; the working actor, `gpu_actor.hosting.host.Host`, is imported in the actor's own process, in a thread.
"""

from __future__ import annotations

import logging
import threading
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gpu_actor.contract.config import ActorOptions
from gpu_actor.contract.head_files import HeadFiles
from gpu_actor.contract.messages import one_line, short_model_name
from gpu_actor.contract.orders import Order
from gpu_actor.contract.questions import Answer
from gpu_actor.contract.report import ActorPhase, ActorReport
from gpu_actor.device.cuda_process import set_allocator

if TYPE_CHECKING:
    from gpu_actor.hosting.host import Host

logger = logging.getLogger(__name__)


class GpuActor:
    """Hosts one frozen base model and co-trains every adapter attached to it; only `stop` takes its time."""

    def __init__(self, options: dict[str, Any], head: HeadFiles | None = None) -> None:
        """Start to import the working actor, which then loads the base model, and return.

        Args:
            options: The fields of `ActorOptions`.
            head: The way to the head node's files; None: they are this node's.
        """
        self._options = ActorOptions(**options)
        self._head = None if head is None or head.is_here else head
        set_allocator(self._options.device)
        self._lock = threading.Lock()
        self._host: Host | None = None
        self._early_orders: list[Order] = []  # that came before the working actor was there
        self._report = ActorReport(  # until it is there
            name=self._options.name,
            boot_id=uuid.uuid4().hex,
            state=ActorPhase.LOADING,
            base_model=self._options.base_model,
            device=self._options.device,
        )
        self._thread = threading.Thread(target=self._start_host, name="loray-import", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        """Identity, as the Ray dashboard shows it: the last part of the base model's name, and the device."""
        return f"{short_model_name(self._options.base_model)}@{self._options.device}"

    def report(self) -> ActorReport:
        """The state of the actor and of every adapter on it, as of the latest shared batch."""
        return self._host.report() if self._host is not None else self._report

    def carry_out(self, order: Order) -> None:
        """Do what the orchestrator wants, at the next step boundary where it concerns the training."""
        with self._lock:
            if self._host is None:
                self._early_orders.append(order)
            else:
                self._host.carry_out(order)

    def answers(self, request_id: str) -> list[Answer] | None:
        """The answers to a request as far as they are made; None: it has not been begun."""
        return self._host.answers(request_id) if self._host is not None else None

    def stop(self) -> None:
        """End the training after it has written a checkpoint of every adapter. Waits for that."""
        self._thread.join()
        if self._host is not None:
            self._host.stop()

    def _start_host(self) -> None:
        try:
            from gpu_actor.hosting.host import Host

            host = Host(self._options, self._report, self._head)
        except Exception as error:
            logger.exception("the actor cannot work")
            self._report = replace(
                self._report, state=ActorPhase.FAILED, reason=f"{type(error).__name__}: {one_line(error)}"
            )
            return
        with self._lock:
            for order in self._early_orders:
                host.carry_out(order)
            self._host = host
