"""The working actor: one base model, one training thread, and orders that return at once.

An order only leaves a task for the training thread, which does its tasks between two shared batches.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from gpu_actor.contract.config import ActorOptions
from gpu_actor.contract.errors import LorayError
from gpu_actor.contract.head_files import HeadFiles
from gpu_actor.contract.orders import (
    Ask,
    Attach,
    Detach,
    Finish,
    Forget,
    Order,
    SetBatchOrder,
    SetTokenBudget,
    Withdraw,
)
from gpu_actor.contract.questions import Answer, AskRequest
from gpu_actor.contract.report import ActorPhase, ActorReport, TenantState
from gpu_actor.device.memory import MemoryMeter, memory_limit
from gpu_actor.generation.prompts import Prompts
from gpu_actor.generation.saved_copies import with_copies
from gpu_actor.hosting.device_end import DeviceEnd
from gpu_actor.hosting.hosted_base import HostedBase
from gpu_actor.hosting.preparer import Preparer, Task
from gpu_actor.paths.urls import is_url
from gpu_actor.training.attempts import reason_of

logger = logging.getLogger(__name__)

_IDLE_WAIT_S = 0.2
_QUESTION_THREADS = 4
_LEAVING_SECONDS = 45.0  # less than the orchestrator waits for an actor that stops


class Host:
    """Hosts one frozen base model and co-trains every adapter attached to it."""

    def __init__(self, options: ActorOptions, blank: ActorReport, head: HeadFiles | None = None) -> None:
        """Start loading the base model in the training thread and return.

        Args:
            options: What to host, and how.
            blank: The actor's report until now, with its name and its identity.
            head: The way to the head node's files; None where those are this node's.
        """
        self._options, self._head = options, head
        self._memory = MemoryMeter(options.device)
        limit = options.memory_limit or memory_limit(options.device, options.memory_share)
        self._published = replace(blank, memory_limit=limit)  # as of the latest shared batch
        self._loading: Future[HostedBase] = Future()
        self._tasks: queue.Queue[Task] = queue.Queue()
        self._device = DeviceEnd()
        self._preparer = Preparer(
            self._loading, self._tasks.put, self._publish, self._device, options.allowed_roots, head
        )
        self._questions = ThreadPoolExecutor(_QUESTION_THREADS, thread_name_prefix="loray-questions")
        self._opening: set[str] = set()  # requests that are being encoded, and not withdrawn
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loray-train", daemon=True)
        self._thread.start()

    def report(self) -> ActorReport:
        """The state of the actor and of every adapter on it, as of the latest shared batch."""
        preparing = self._preparer.reports()  # first: a job that begins to train now is in both, never in neither
        published = self._published
        if self._device.phase is not None:  # nothing more is asked of the device
            return replace(published, state=self._device.phase, reason=self._device.reason)
        trained = [tenant for tenant in published.tenants if tenant.job_id not in preparing]
        used = self._memory.used()
        ready = published.state is ActorPhase.READY
        return replace(
            published,
            memory_used=used,
            memory_reserved=self._memory.reserved(),
            memory_free=self._memory.free(published.memory_limit),
            memory_peak=max(used, published.memory_peak),
            steps=self._loading.result().trainer.meter.take() if ready else (),
            tenants=(*trained, *preparing.values()),
        )

    def carry_out(self, order: Order) -> None:
        """Do what the orchestrator wants, at the next step boundary where it concerns the training."""
        match order:
            case Attach(spec, attempt):
                self._preparer.attach(spec, attempt)
            case Detach(job_id, keep, attempt):
                if self._preparer.detach(job_id, keep, attempt):
                    self._tasks.put(lambda hosted: hosted.trainer.detach(job_id, keep=keep))
            case Finish(job_id, reason):
                self._tasks.put(lambda hosted: hosted.trainer.finish(job_id, reason))
            case Forget(job_id, attempt):
                self._preparer.forget(job_id, attempt)
                self._tasks.put(lambda hosted: hosted.trainer.forget(job_id, attempt))
            case SetBatchOrder(job_ids):
                self._tasks.put(lambda hosted: hosted.trainer.set_order(job_ids))
            case SetTokenBudget(tokens):
                self._tasks.put(lambda hosted: hosted.trainer.set_budget(tokens))
            case Ask(request):
                self._opening.add(request.request_id)
                with contextlib.suppress(RuntimeError):  # the actor is ending
                    self._questions.submit(self._prepare_answers, request)
            case Withdraw(request_id):
                self._opening.discard(request_id)
                self._tasks.put(lambda hosted: hosted.answering.withdraw(request_id))

    def answers(self, request_id: str) -> list[Answer] | None:
        """The answers to a request as far as they are made; None: it has not been begun."""
        return self._loading.result().answering.answers(request_id) if self._is_loaded() else None

    def stop(self) -> None:
        """End the training thread after it has written a checkpoint of every adapter. Waits for that."""
        self._stopping.set()
        self._preparer.stop()
        self._device.stop()
        self._questions.shutdown(wait=False, cancel_futures=True)
        self._thread.join()
        if self._is_loaded():
            self._loading.result().encoder.close()

    # -- the threads of the questions ----------------------------------------------------------------------------

    def _prepare_answers(self, request: AskRequest) -> None:
        """Encode the questions of a request, and copy adapters that lie elsewhere, while the training goes on."""
        prompts: Prompts | LorayError
        copied, lacking = request, None
        try:
            prompts = self._loading.result().encoder.encode(request)
            folders = [who.folder for who in request.answerers if who.folder is not None]
            if any(self._head is not None or is_url(folder) for folder in folders):
                live = {tenant.job_id for tenant in self.report().tenants if tenant.state is TenantState.TRAINING}
                copied, lacking = with_copies(request, live, self._head)
        except LorayError as error:
            prompts = error
        except Exception as error:
            logger.exception("questions could not be encoded")
            prompts = LorayError(reason_of(error))

        def open_unless_withdrawn(hosted: HostedBase) -> None:
            if request.request_id in self._opening:
                self._opening.discard(request.request_id)
                hosted.answering.open(copied, lacking, prompts)

        self._tasks.put(open_unless_withdrawn)

    def _is_loaded(self) -> bool:
        return self._loading.done() and self._loading.exception() is None

    # -- the training thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            hosted = HostedBase.load(self._options, self._memory, self._published)
        except Exception as error:
            logger.exception("the base model cannot be served")
            self._published = replace(self._published, state=ActorPhase.FAILED, reason=reason_of(error))
            self._loading.set_exception(error)
            return
        self._loading.set_result(hosted)
        self._publish(hosted)
        while not self._stopping.is_set() and self._device.phase is None:
            self._do_tasks(hosted)
            started = time.monotonic()
            try:
                hosted.trainer.step()
                hosted.answering.after_batch(time.monotonic() - started)
            except Exception as error:  # the trainer ends a bad job by itself; nothing else must end the others
                if self._device.is_told_by(error):
                    return
                logger.exception("a shared batch failed outside any job")
                self._stopping.wait(_IDLE_WAIT_S)
            self._publish(hosted)
        if self._device.phase is not None:
            return
        self._let_go(hosted)
        self._publish(hosted)

    def _let_go(self, hosted: HostedBase) -> None:
        """Let every job leave, and wait a while until what they have written is where others find it."""
        for job_id in hosted.trainer.tenant_ids():
            hosted.trainer.detach(job_id, keep=True)
        deadline = time.monotonic() + _LEAVING_SECONDS
        while hosted.trainer.tenant_ids() and time.monotonic() < deadline:
            time.sleep(_IDLE_WAIT_S)
            hosted.trainer.step()  # makes no batch: all of them wait

    def _do_tasks(self, hosted: HostedBase) -> None:
        """Do what was ordered since the last shared batch; wait a little when there is nothing to train."""
        try:
            task = self._tasks.get(timeout=_IDLE_WAIT_S) if self._rests(hosted) else self._tasks.get_nowait()
            while True:
                try:
                    task(hosted)
                except Exception as error:
                    if self._device.is_told_by(error):
                        return
                    logger.exception("an order could not be carried out")
                task = self._tasks.get_nowait()
        except queue.Empty:
            return

    @staticmethod
    def _rests(hosted: HostedBase) -> bool:
        return hosted.trainer.idle and hosted.answering.idle

    def _publish(self, hosted: HostedBase) -> None:
        self._published = hosted.report()
