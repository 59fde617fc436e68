"""The actor: one base model, one training thread, and control methods that return at once.

A plain class; `orchestrator.cluster.fleet` wraps it for Ray. Control calls only leave a note for the training thread,
which reads its notes between two shared batches. Data and start weights are prepared in a second thread, so that a
large data set holds up nobody.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from gpu_actor.contract.config import ActorOptions, AdapterSpec
from gpu_actor.contract.messages import short_model_name
from gpu_actor.contract.report import ActorReport, TenantReport, TenantState
from gpu_actor.device.memory import MemoryMeter, device_name, memory_limit

if TYPE_CHECKING:
    from gpu_actor.data.dataset import LoadedDataset
    from gpu_actor.model.base_model import BaseModel
    from gpu_actor.training.tenant import Tenant
    from gpu_actor.training.trainer import CoTrainer

logger = logging.getLogger(__name__)

_IDLE_WAIT_S = 0.2


class GpuActor:
    """Hosts one frozen base model and co-trains every adapter attached to it."""

    def __init__(self, options: dict[str, Any]) -> None:
        """Start loading the base model in the training thread and return.

        Args:
            options: The fields of `ActorOptions`.
        """
        self._options = ActorOptions(**options)
        self._boot_id = uuid.uuid4().hex
        self._lock = threading.Lock()
        self._notes: queue.Queue[Callable[[], None]] = queue.Queue()
        self._attempts: dict[str, int] = {}  # newest attempt seen, by job
        self._preparing: dict[str, TenantReport] = {}  # being prepared, or failed in it
        self._unwanted: dict[str, bool] = {}  # detached while being prepared -> keep
        self._memory = MemoryMeter(self._options.device)
        self._limit = self._options.memory_limit or memory_limit(self._options.device, self._options.memory_share)
        self._device_name = ""
        self._idle_bytes = 0
        self._state = "loading"
        self._reason: str | None = None
        self._published: ActorReport = self._blank()
        self._trainer: CoTrainer | None = None
        self._base: BaseModel | None = None
        self._stopping = threading.Event()
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="loray-prepare")
        self._thread = threading.Thread(target=self._run, name="loray-train", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        """Identity, as the Ray dashboard shows it: the last part of the base model's name, and the device."""
        return f"{short_model_name(self._options.base_model)}@{self._options.device}"

    # -- control: every method returns at once -------------------------------------------------------------------

    def report(self) -> ActorReport:
        """The state of the actor and of every adapter on it, as of the latest shared batch."""
        with self._lock:
            published, preparing = self._published, dict(self._preparing)
        trained = [tenant for tenant in published.tenants if tenant.job_id not in preparing]
        used = self._memory.used()
        return replace(
            published,
            memory_used=used,
            memory_reserved=self._memory.reserved(),
            memory_free=self._memory.free(published.memory_limit),
            memory_peak=max(used, published.memory_peak),
            steps=self._trainer.meter.take() if self._trainer is not None else (),
            tenants=(*trained, *preparing.values()),
        )

    def attach(self, spec: dict[str, Any], attempt: int) -> None:
        """Train an adapter, from the newest checkpoint in its output folder if there is one.

        Args:
            spec: The fields of `AdapterSpec`.
            attempt: Number of this assignment; one that was seen already changes nothing.
        """
        wanted = AdapterSpec(**spec)
        with self._lock:
            if attempt <= self._attempts.get(wanted.job_id, 0):
                return
            self._attempts[wanted.job_id] = attempt
            self._unwanted.pop(wanted.job_id, None)
            self._preparing[wanted.job_id] = TenantReport(wanted.job_id, attempt, TenantState.PREPARING)
        self._preparer.submit(self._prepare, wanted, attempt)

    def detach(self, job_id: str, keep: bool) -> None:
        """Drop an adapter at the next step boundary; unknown ones are ignored.

        Args:
            job_id: Whose.
            keep: Write a checkpoint first, so that it can go on elsewhere; False gives it up.
        """
        with self._lock:
            report = self._preparing.get(job_id)
            if report is not None and report.state is TenantState.PREPARING:
                self._unwanted[job_id] = keep
        self._notes.put(lambda: self._detach(job_id, keep))

    def forget(self, job_id: str) -> None:
        """Stop reporting an adapter whose end the orchestrator has recorded."""
        with self._lock:
            report = self._preparing.get(job_id)
            if report is not None and report.state is not TenantState.PREPARING:
                del self._preparing[job_id]
        self._notes.put(lambda: self._forget(job_id))

    def order(self, job_ids: list[str]) -> None:
        """The order in which adapters come into a shared batch."""
        self._notes.put(lambda: self._trainer.set_order(job_ids) if self._trainer else None)

    def finish(self, job_id: str, reason: str) -> None:
        """End an adapter early, at the next step boundary, and export what it has learned; unknown ones are ignored.

        Args:
            job_id: Whose.
            reason: Why, in words.
        """
        self._notes.put(lambda: self._trainer.finish(job_id, reason) if self._trainer else None)

    def budget(self, tokens: int) -> None:
        """Most tokens of a shared batch from now on."""
        self._notes.put(lambda: self._trainer.set_budget(tokens) if self._trainer else None)

    def stop(self) -> None:
        """End the training thread after it has written a checkpoint of every adapter. Waits for that."""
        self._stopping.set()
        self._preparer.shutdown(wait=False, cancel_futures=True)
        self._thread.join()

    # -- preparing: in the second thread -------------------------------------------------------------------------

    def _prepare(self, spec: AdapterSpec, attempt: int) -> None:
        while self._base is None or self._trainer is None:  # the base is still loading
            if self._stopping.wait(_IDLE_WAIT_S):
                return
            if self._state == "failed":
                self._cannot_start(spec, attempt, RuntimeError(self._reason))
                return
        with self._trainer.meter.disturbed():
            self._load_and_make(self._base, spec, attempt)

    def _load_and_make(self, base: BaseModel, spec: AdapterSpec, attempt: int) -> None:
        try:
            make = partial(self._make_tenant, base, spec, attempt, self._load_data(base, spec))
        except Exception as error:
            self._cannot_start(spec, attempt, error)
            return
        try:
            tenant = make()
        except Exception as error:
            from gpu_actor.device.failures import is_out_of_memory

            if is_out_of_memory(error):  # a shared batch has the memory: once more, between two of them
                self._notes.put(lambda: self._make_and_attach(spec, attempt, make))
            else:
                self._cannot_start(spec, attempt, error)
            return
        self._notes.put(lambda: self._attach(tenant))

    def _load_data(self, base: BaseModel, spec: AdapterSpec) -> LoadedDataset:
        from gpu_actor.adapters.start_check import check_adapter_fits
        from gpu_actor.data.dataset import load_dataset

        check_adapter_fits(base.description, spec.lora)
        known = base.description
        data = load_dataset(spec.dataset, spec.training, self._tokenizer, known.vocab_size, known.longest_sequence)
        if known.positions is not None and data.longest > known.positions:
            remark = "job %s: a sample has %d tokens; the base model was made for %d positions"
            logger.warning(remark, spec.name, data.longest, known.positions)
        return data

    def _make_tenant(self, base: BaseModel, spec: AdapterSpec, attempt: int, data: LoadedDataset) -> Tenant:
        from gpu_actor.training.references import read_reference
        from gpu_actor.training.tenant import Tenant

        return Tenant(spec, attempt, base.new_adapter(spec.lora), data, read_reference(base, spec))

    def _cannot_start(self, spec: AdapterSpec, attempt: int, error: Exception) -> None:
        from gpu_actor.training.trainer import reason_of

        self._end_if_lost(error)
        logger.info("job %s cannot start", spec.name, exc_info=error)
        failed = TenantReport(spec.job_id, attempt, TenantState.FAILED, reason=reason_of(error))
        self._set_prepared(spec.job_id, failed)

    @lru_cache(maxsize=1)  # noqa: B019 - the actor lives as long as its process
    def _tokenizer(self) -> Any:
        from gpu_actor.loading.tokenizer import load_tokenizer

        base = self._base
        return load_tokenizer(
            self._options.base_model,
            trust_remote_code=self._options.trust_remote_code,
            vocab_size=base.description.vocab_size if base else None,
        )

    def _set_prepared(self, job_id: str, report: TenantReport | None) -> None:
        with self._lock:
            if report is None:
                self._preparing.pop(job_id, None)
            else:
                self._preparing[job_id] = report

    # -- notes: in the training thread, between two shared batches -----------------------------------------------

    def _attach(self, tenant: Tenant) -> None:
        job_id = tenant.spec.job_id
        with self._lock:
            if self._attempts.get(job_id) != tenant.attempt or self._trainer is None:
                return  # a wish that came since belongs to the newer attempt
            keep = self._unwanted.pop(job_id, None)
        self._trainer.attach(tenant)
        if keep is not None:
            self._trainer.detach(job_id, keep=keep)
        self._publish()
        self._set_prepared(job_id, None)

    def _make_and_attach(self, spec: AdapterSpec, attempt: int, make: Callable[[], Tenant]) -> None:
        self._memory.release()
        try:
            tenant = make()
        except Exception as error:
            self._cannot_start(spec, attempt, error)
        else:
            self._attach(tenant)

    def _detach(self, job_id: str, keep: bool) -> None:
        if self._trainer is not None:
            self._trainer.detach(job_id, keep=keep)

    def _forget(self, job_id: str) -> None:
        if self._trainer is not None:
            self._trainer.forget(job_id)

    # -- the training thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._load()
        except Exception as error:
            from gpu_actor.training.trainer import reason_of

            logger.exception("the base model cannot be served")
            self._reason = reason_of(error)
            self._state = "failed"
            self._publish()
            return
        while not self._stopping.is_set():
            self._read_notes()
            try:
                if self._trainer is not None:
                    self._trainer.step()
            except Exception as error:  # the trainer ends a bad job by itself; nothing else must end the others
                self._end_if_lost(error)
                logger.exception("a shared batch failed outside any job")
                self._stopping.wait(_IDLE_WAIT_S)
            self._publish()
        if self._trainer is not None:
            for job_id in self._trainer.tenant_ids():
                self._trainer.detach(job_id, keep=True)
        self._publish()

    def _load(self) -> None:
        import torch

        from gpu_actor.model.base_model import BaseModel
        from gpu_actor.training.trainer import CoTrainer

        options = self._options
        if options.device == "cpu":
            # Ray sets OMP_NUM_THREADS=1 for actors without a CPU share of their own
            torch.set_num_threads(options.cpu_threads or os.cpu_count() or 1)
        base = BaseModel.load(
            options.base_model,
            options.device,
            options.dtype,
            gradient_checkpointing=options.gradient_checkpointing,
            quantization=options.quantization,
            trust_remote_code=options.trust_remote_code,
            allow_pickle=options.allow_pickle,
        )
        for remark in base.remarks:
            logger.warning(remark)
        self._device_name = device_name(options.device)
        self._memory.release()
        self._idle_bytes = self._memory.used()
        self._trainer = CoTrainer(base, options.token_budget, self._limit)
        self._state = "ready"
        self._reason = "; ".join(base.remarks) or None
        self._base = base
        self._publish()

    def _read_notes(self) -> None:
        """Carry out what was asked since the last shared batch; wait a little when there is nothing to train."""
        idle = self._trainer is None or self._trainer.idle
        try:
            note = self._notes.get(timeout=_IDLE_WAIT_S) if idle else self._notes.get_nowait()
            while True:
                try:
                    note()
                except Exception as error:
                    self._end_if_lost(error)
                    logger.exception("what was asked of the actor could not be done")
                note = self._notes.get_nowait()
        except queue.Empty:
            return

    def _end_if_lost(self, error: Exception) -> None:
        """End the process if nothing runs on its device any more; it is started anew, and the jobs go on."""
        from gpu_actor.device.failures import is_device_lost

        if is_device_lost(error):
            logger.critical("the device is lost, so this process ends: jobs go on from checkpoints", exc_info=error)
            os._exit(1)

    def _publish(self) -> None:
        from gpu_actor.contract.footprint import weight_bytes

        report = self._blank()
        if self._trainer is not None and self._base is not None:
            description = self._base.description
            report = replace(
                report,
                base_bytes=weight_bytes(description, self._base.dtype.itemsize, self._options.quantization),
                memory_peak=self._trainer.meter.highest,
                memory_idle=self._idle_bytes,
                token_budget=self._trainer.token_budget,
                micro_batch_cap=self._trainer.micro_batch_cap,
                pressed=self._trainer.pressed,
                step_seconds=self._trainer.step_seconds,
                tokens_per_s=self._trainer.tokens_per_s,
                batch_tokens=self._trainer.batch_tokens,
                batch_adapters=self._trainer.batch_adapters,
                tenants=tuple(self._trainer.reports()),
            )
        with self._lock:
            self._published = report

    def _blank(self) -> ActorReport:
        options = self._options
        return ActorReport(
            name=options.name,
            boot_id=self._boot_id,
            state=self._state,
            reason=self._reason,
            base_model=options.base_model,
            device=options.device,
            device_name=self._device_name,
            memory_limit=self._limit,
        )
