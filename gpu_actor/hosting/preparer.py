"""Jobs on their way into training: their data and start weights are made in a second thread.

So a large data set holds up nobody. A finished tenant is handed to the training thread, between two shared batches.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch

from gpu_actor.adapters.start_check import check_adapter_fits
from gpu_actor.contract.config import AdapterSpec, DatasetConfig, TrainingConfig
from gpu_actor.contract.errors import KilledError
from gpu_actor.contract.head_files import HeadFiles
from gpu_actor.contract.report import TenantReport, TenantState
from gpu_actor.data.dataset import LoadedDataset
from gpu_actor.device.failures import is_out_of_memory
from gpu_actor.hosting.device_end import DeviceEnd
from gpu_actor.hosting.hosted_base import HostedBase
from gpu_actor.hosting.job_places import JobPlaces, find_places
from gpu_actor.model.base_model import BaseModel
from gpu_actor.storage.job_folder import StorageError
from gpu_actor.training.attempts import reason_of
from gpu_actor.training.references import read_reference
from gpu_actor.training.tenant import Tenant

logger = logging.getLogger(__name__)

_AGAIN_SECONDS = 5.0  # between two looks at a storage that is away, and twice as long after each process that is killed
_LOOK_SECONDS = 0.1  # between two looks whether an earlier attempt has left
_MOST_KILLED = 4  # processes of one job; by then whoever looks after the machine is to hear of it

Task = Callable[[HostedBase], None]
"""What the training thread does between two shared batches."""
LoadDataset = Callable[[DatasetConfig, TrainingConfig, int | None], LoadedDataset]


def _compute_with_one_thread() -> None:
    """Leave a CPU's threads to the training thread.

    A second pool of OpenMP threads, idle as it is, is more threads than cores to libgomp: the training thread's pool
    then sleeps between any two operations instead of waiting awake. Not before the base model is loaded: a thread that
    has computed nothing yet takes over what any other thread sets.
    """
    torch.set_num_threads(1)


class Preparer:
    """Makes tenants of the jobs that come to one actor, one after the other."""

    def __init__(
        self,
        loading: Future[HostedBase],
        post: Callable[[Task], None],
        publish: Callable[[HostedBase], None],
        device: DeviceEnd,
        allowed_roots: Sequence[str],
        head: HeadFiles | None = None,
    ) -> None:
        """Nothing is prepared before the base model is loaded.

        Args:
            loading: Has the base model as soon as it is loaded.
            post: Lets the training thread do something between two shared batches.
            publish: Makes what is so now the actor's report.
            device: Hears of every error.
            allowed_roots: Folders below which jobs write.
            head: The way to the head node's files; None where those are this node's.
        """
        self._device, self._roots, self._head = device, allowed_roots, head
        self._loading, self._post, self._publish = loading, post, publish
        self._lock = threading.Lock()
        self._attempts: dict[str, int] = {}  # newest attempt seen, by job
        self._reports: dict[str, TenantReport] = {}  # of jobs that are being prepared, or have failed in it
        self._detached: dict[str, bool] = {}  # jobs that were detached while they were prepared -> keep
        self._killed: dict[tuple[str, int], int] = {}  # processes by job and attempt; in the second thread alone
        self._stopped = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="loray-prepare")

    # -- orders: return at once ----------------------------------------------------------------------------------

    def attach(self, spec: AdapterSpec, attempt: int) -> None:
        """Prepare a job; an attempt that was seen already changes nothing. An earlier one leaves first."""
        with self._lock:
            earlier = self._attempts.get(spec.job_id, 0)
            if attempt <= earlier:
                return
            self._attempts[spec.job_id] = attempt
            self._detached.pop(spec.job_id, None)
            self._reports[spec.job_id] = TenantReport(spec.job_id, attempt, TenantState.PREPARING)
        if earlier:
            self._loading.add_done_callback(partial(self._once_loaded, spec, attempt))
        else:
            self._executor.submit(self._prepare, spec, attempt)

    def detach(self, job_id: str, keep: bool, attempt: int) -> bool:
        """A job that is being prepared leaves the trainer as soon as it has come there; none so old begins any more.

        Returns:
            Whether the order is about the newest attempt that was seen.
        """
        with self._lock:
            if attempt < self._attempts.get(job_id, 0):
                return False
            self._attempts[job_id] = attempt
            report = self._reports.get(job_id)
            if report is not None and report.state is TenantState.PREPARING:
                self._detached[job_id] = keep
            return True

    def forget(self, job_id: str, attempt: int) -> None:
        """Stop reporting a job that could not be prepared, unless that was in a later attempt."""
        with self._lock:
            report = self._reports.get(job_id)
            if report is not None and report.attempt <= attempt and report.state is not TenantState.PREPARING:
                del self._reports[job_id]

    def reports(self) -> dict[str, TenantReport]:
        """By id, the jobs that are being prepared, and those that could not be."""
        with self._lock:
            return dict(self._reports)

    def stop(self) -> None:
        """Begin with no further job."""
        self._stopped = True
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _once_loaded(self, spec: AdapterSpec, attempt: int, loading: Future[HostedBase]) -> None:
        """Let the earlier attempt be seen off; without a base model there is nobody who would."""
        error = loading.exception()
        if isinstance(error, Exception):
            self._report_failure(spec, attempt, error)
        else:
            self._post(partial(self._see_off, spec, attempt))

    # -- in the second thread ------------------------------------------------------------------------------------

    def _prepare(self, spec: AdapterSpec, attempt: int) -> None:
        try:
            hosted = self._loading.result()
        except Exception as error:
            self._report_failure(spec, attempt, error)
            return
        _compute_with_one_thread()
        if spec.job_id in hosted.trainer.tenant_ids():  # the earlier attempt, which leaves when it has saved its state
            self._prepare_later(spec, attempt, _LOOK_SECONDS)
        elif not self._stopped:
            with hosted.trainer.meter.disturbed():
                self._make(hosted, spec, attempt)

    def _make(self, hosted: HostedBase, spec: AdapterSpec, attempt: int) -> None:
        places = None
        try:
            places = find_places(spec, attempt, self._head, self._roots)
            dataset = load_data(hosted.base, places.spec, hosted.encoder.load_dataset)
        except StorageError as error:
            self._try_later(spec, attempt, str(error), _AGAIN_SECONDS)
            return
        except KilledError as error:
            self._was_killed(spec, attempt, error, places)
            return
        except Exception as error:
            self._cannot_start(spec, attempt, error, places)
            return
        make = partial(_make_tenant, hosted.base, places, attempt, dataset)
        try:
            tenant = make()
        except KilledError as error:  # that of its regular expressions
            self._was_killed(spec, attempt, error, places)
            return
        except Exception as error:
            if is_out_of_memory(error):  # a shared batch has the memory: once more, between two of them
                self._post(partial(self._make_between_batches, places, attempt, make))
            else:
                self._cannot_start(spec, attempt, error, places)
            return
        self._killed.pop((spec.job_id, attempt), None)
        self._post(partial(self._hand_over, tenant))

    def _was_killed(self, spec: AdapterSpec, attempt: int, error: KilledError, places: JobPlaces | None) -> None:
        """A process that did a part of a job was killed: it is not the job's fault, unless that never ends."""
        key = spec.job_id, attempt
        self._killed[key] = killed = self._killed.get(key, 0) + 1
        if killed < _MOST_KILLED and not self._stopped:
            why = str(error)
            if places is not None:
                why = places.in_its_words(why)
                places.close()
            self._try_later(spec, attempt, why, _AGAIN_SECONDS * 2 ** (killed - 1))
            return
        del self._killed[key]
        remedy = f"make room there, or give its actor another node, and `loray retry {spec.name}`"
        self._cannot_start(spec, attempt, KilledError(f"{error} ({killed} times in a row); {remedy}"), places)

    def _try_later(self, spec: AdapterSpec, attempt: int, why: str, seconds: float) -> None:
        """What is no fault of a job costs it time, and nothing else; it may leave meanwhile."""
        with self._lock:
            if self._attempts.get(spec.job_id) != attempt:
                return
            keep = self._detached.pop(spec.job_id, None)
            if keep is None:
                waits = TenantReport(spec.job_id, attempt, TenantState.PREPARING, unsaved=f"the job waits: {why}")
            else:
                waits = TenantReport(spec.job_id, attempt, TenantState.DETACHED if keep else TenantState.CANCELLED)
            self._reports[spec.job_id] = waits
        if keep is None and not self._stopped:
            self._prepare_later(spec, attempt, seconds)

    def _prepare_later(self, spec: AdapterSpec, attempt: int, seconds: float) -> None:
        again = threading.Timer(seconds, self._prepare_again, (spec, attempt))
        again.daemon = True
        again.start()

    def _prepare_again(self, spec: AdapterSpec, attempt: int) -> None:
        with contextlib.suppress(RuntimeError):  # the executor has ended
            self._executor.submit(self._prepare, spec, attempt)

    def _cannot_start(self, spec: AdapterSpec, attempt: int, error: Exception, places: JobPlaces | None) -> None:
        if places is not None:
            places.close()
        if self._stopped:  # what the job used has ended with the actor; should it be at fault, it shows in its next try
            return
        if not self._device.is_told_by(error):
            self._report_failure(spec, attempt, error, places)

    def _report_failure(
        self, spec: AdapterSpec, attempt: int, error: Exception, places: JobPlaces | None = None
    ) -> None:
        logger.info("job %s cannot start", spec.name, exc_info=error)
        reason = reason_of(error) if places is None else places.in_its_words(reason_of(error))
        with self._lock:
            self._reports[spec.job_id] = TenantReport(spec.job_id, attempt, TenantState.FAILED, reason=reason)

    # -- in the training thread ----------------------------------------------------------------------------------

    def _see_off(self, spec: AdapterSpec, attempt: int, hosted: HostedBase) -> None:
        """Let the earlier attempt leave before the later one is prepared: two would write into one folder."""
        hosted.trainer.detach(spec.job_id, keep=True)
        self._prepare_again(spec, attempt)

    def _make_between_batches(
        self, places: JobPlaces, attempt: int, make: Callable[[], Tenant], hosted: HostedBase
    ) -> None:
        hosted.trainer.meter.memory.release()
        try:
            tenant = make()
        except Exception as error:
            self._cannot_start(places.spec, attempt, error, places)
        else:
            self._hand_over(tenant, hosted)

    def _hand_over(self, tenant: Tenant, hosted: HostedBase) -> None:
        """Let a tenant train. It is in the actor's report all the time: what it was is dropped at the very last."""
        job_id = tenant.spec.job_id
        with self._lock:
            if self._attempts.get(job_id) != tenant.attempt:
                tenant.files.close()
                return  # an order that came since is about the newer attempt
            keep = self._detached.pop(job_id, None)
        hosted.trainer.attach(tenant)
        if keep is not None:
            hosted.trainer.detach(job_id, keep=keep)
        self._publish(hosted)
        with self._lock:
            self._reports.pop(job_id, None)


def load_data(base: BaseModel, spec: AdapterSpec, load: LoadDataset) -> LoadedDataset:
    """The data of a job, checked against its base model.

    Args:
        base: The base model.
        spec: The job.
        load: Reads and encodes them, see `Encoder.load_dataset`.

    Raises:
        LorayError: The adapter or the data do not go with the base model, or the data cannot be read.
    """
    description = base.description
    check_adapter_fits(description, spec.lora)
    dataset = load(spec.dataset, spec.training, description.longest_sequence)
    if description.positions is not None and dataset.longest > description.positions:
        remark = "job %s: a sample has %d tokens; the base model was made for %d positions"
        logger.warning(remark, spec.name, dataset.longest, description.positions)
    return dataset


def _make_tenant(base: BaseModel, places: JobPlaces, attempt: int, dataset: LoadedDataset) -> Tenant:
    spec = places.spec
    return Tenant(spec, attempt, base.new_adapter(spec.lora), dataset, read_reference(base, spec), places.mirror)
