"""The training loop over shared batches: one base model, many tenants. No Ray, no threads."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from functools import partial

import torch

from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.batch.composer import Candidate, TokenBudget, compose
from gpu_actor.batch.shared_batch import pack
from gpu_actor.contract.footprint import DEFAULT_TOKEN_BUDGET, MICRO_BATCH_CAP
from gpu_actor.contract.report import TenantReport, TenantState
from gpu_actor.device.failures import is_device_lost, is_out_of_memory
from gpu_actor.device.readback import Readback
from gpu_actor.device.step_meter import StepMeter
from gpu_actor.model.base_model import BaseModel
from gpu_actor.operators.adapter_group import side_by_side
from gpu_actor.training.attempts import attempt, reason_of, too_long
from gpu_actor.training.clip import Clip, clip_together
from gpu_actor.training.evaluation import evaluate
from gpu_actor.training.references import run_ahead
from gpu_actor.training.tenant import Tenant
from gpu_actor.training.work_done import WorkDone

logger = logging.getLogger(__name__)

_OF_ROOM = 0.9  # of the room beside the base model and the adapters, that shared batches are to take
_SPEED_WINDOW = 20  # shared batches over which the actor's speed is averaged


class CoTrainer:
    """Trains every attached tenant, some of them in each shared batch.

    Attributes:
        base: The base model that all tenants share.
        budget: Most tokens of a shared batch; a larger micro-batch goes alone.
        micro_batch_cap: Most tokens of a micro-batch; a larger one is run in parts. An adapter's rounding depends on
            it, so it is the same on all actors of a kind, and is lowered only where memory runs out. When there is
            room again it rises for those who come; a job in training keeps what it has.
        memory_limit: Bytes that may be in use; None: no more than the device has.
        meter: What the steps cost.
        memory_shortages: Times that memory ran out or the limit was passed.
        work: What was trained in all.
        late: Read the losses of an optimizer step after the next shared batch has begun to run (CUDA): the device goes
            on while this process logs and packs.
    """

    def __init__(self, base: BaseModel, token_budget: int | None = None, memory_limit: int | None = None) -> None:
        self.base = base
        self.budget = TokenBudget(token_budget or DEFAULT_TOKEN_BUDGET[base.device.type])
        self.micro_batch_cap = MICRO_BATCH_CAP[base.device.type]
        self.memory_limit = memory_limit
        self.meter = StepMeter(base.device)
        self.memory_shortages = 0
        self.work = WorkDone()
        self._whole_cap = self.micro_batch_cap  # before it was lowered
        self._token_bytes = 0.0  # of a shared batch, when the limit was passed
        self._fitted = self.budget.fits  # before the shared batch that is being made
        self.batch_tokens = 0
        self.batch_adapters = 0
        self.late = base.device.type == "cuda"
        self._unsettled: list[Tenant] = []  # whose optimizer steps were taken, and not yet counted
        self._readback: Readback | None = None  # their numbers
        self._ahead = 0  # tokens that the latest shared batch ran forward only
        self._tenants: dict[str, Tenant] = {}
        self._order: list[str] = []
        self._ended: dict[str, TenantReport] = {}
        self._speed: deque[tuple[float, int]] = deque(maxlen=_SPEED_WINDOW)

    # -- tenants -------------------------------------------------------------------------------------------------

    def attach(self, tenant: Tenant) -> None:
        """Let a tenant take part from the next shared batch on."""
        job_id = tenant.spec.job_id
        self._ended.pop(job_id, None)
        self._tenants[job_id] = tenant
        tenant.limit_micro_batches(self.micro_batch_cap)
        if tenant.finished:  # its actor died between its last step and the record of its end
            self._finish(tenant)

    def detach(self, job_id: str, *, keep: bool) -> None:
        """Drop a tenant between two shared batches.

        Args:
            job_id: Whose; unknown ones are ignored.
            keep: Write a checkpoint of its last complete optimizer step (the step in work is made again later);
                False removes its checkpoints instead.
        """
        self._settle()
        tenant = self._tenants.get(job_id)
        if tenant is None:
            return
        try:
            if keep:
                tenant.leave()
            else:
                tenant.discard()
        except Exception as error:
            self._fail(tenant, error)
            return
        if not keep:
            self._end(tenant, TenantState.CANCELLED)
        elif tenant.may_leave:  # else as soon as its checkpoint is where others find it
            self._end(tenant, TenantState.DETACHED)

    def forget(self, job_id: str, attempt: int) -> None:
        """Stop reporting a tenant that has ended, unless a later attempt of it has ended since."""
        if job_id in self._ended and self._ended[job_id].attempt <= attempt:
            del self._ended[job_id]

    def finish(self, job_id: str, reason: str) -> None:
        """End a tenant early, with the adapter of its last complete optimizer step; unknown ones are ignored."""
        self._settle()
        tenant = self._tenants.get(job_id)
        if tenant is not None:
            tenant.stop(reason)
            self._finish(tenant)

    def snapshot(self, job_id: str) -> tuple[AdapterWeights, int, int] | None:
        """A copy of an adapter as it is between two shared batches, its step, and the steps of the job.

        None: that job does not train here.
        """
        tenant = self._tenants.get(job_id)
        if tenant is None:
            return None
        return tenant.weights.snapshot(), tenant.steps_taken, tenant.cursor.total_steps

    def set_order(self, job_ids: Sequence[str]) -> None:
        """The scheduler's order of the tenants, first comes first into a batch."""
        self._order = list(job_ids)

    def set_budget(self, tokens: int) -> None:
        """The scheduler's token budget: where more tokens in a shared batch no longer raise the speed."""
        self.budget.wanted = tokens

    @property
    def token_budget(self) -> int:
        """Most tokens of a shared batch as things are."""
        return self.budget.tokens

    @property
    def idle(self) -> bool:
        """Whether there is nothing to train, or only for those who wait until their folders can be written again."""
        return all(tenant.waits for tenant in self._tenants.values())

    def tenant_ids(self) -> list[str]:
        """The tenants in training."""
        return list(self._tenants)

    def reports(self) -> list[TenantReport]:
        """Progress of all tenants, those included that have ended and are not yet forgotten."""
        training = [tenant.report(TenantState.TRAINING) for tenant in self._tenants.values()]
        return [*training, *self._ended.values()]

    # -- one shared batch ----------------------------------------------------------------------------------------

    def step(self) -> None:
        """Make one shared batch: compose, forward, backward; then finish the optimizer steps that are complete.

        What a job does wrong ends that job. An error after which nothing runs on the device any more
        (`is_device_lost`) is raised: this process is of no use to any job.
        """
        self._write_again()
        chosen = self._choose()
        if not chosen:
            return
        started = time.monotonic()
        lengths = [len(ids) for tenant, count in chosen for part in tenant.pending[:count] for ids in part.sequences]
        self._fitted = self.budget.fits
        self.meter.begin()
        ran = self._run_or_isolate(chosen)
        for tenant in self._tenants.values():
            tenant.left_out += 1
        for tenant in ran:
            tenant.left_out = 0
        self._settle()  # of the step before: its numbers are there by now, and this one's kernels run meanwhile
        self._complete([tenant for tenant in ran if self._trains(tenant) and not tenant.pending])
        self.base.rest()
        self._measured(chosen, lengths)
        self._speed.append((time.monotonic() - started, self.batch_tokens))

    def _measured(self, chosen: list[tuple[Tenant, int]], lengths: list[int]) -> None:
        """Close the measurement of a shared batch, and make the next ones smaller if it took too much memory."""
        adapters = sum(tenant.weights.bytes_in_training for tenant in self._tenants.values())
        whole = self.batch_tokens == sum(lengths) and self.batch_adapters == len(chosen)
        jobs = [tenant.spec.job_id for tenant, _ in chosen]
        self.meter.end(jobs, lengths, adapters, ahead=self._ahead, whole=whole)
        if self.memory_limit is not None and self.meter.alone and self.meter.peak > self.memory_limit:
            self._heed_limit(self.memory_limit, sum(lengths))
        elif whole and self.budget.kept():
            self._use_room()

    def _heed_limit(self, limit: int, tokens: int) -> None:
        """A shared batch took the actor past its limit: as many tokens as fit by its own measure, from now on.

        On a CPU nothing stops a process at the limit that its operator set, so it must keep to it by itself.
        """
        self.meter.memory.release()
        floor = min(self.meter.before, self.meter.memory.used())  # what stays when no batch is being made
        share = (limit - floor) / max(1, self.meter.peak - floor)
        lower = max(1, int(tokens * min(_OF_ROOM, max(0.1, _OF_ROOM * share))))
        if lower >= max(self.token_budget, self.micro_batch_cap):
            return  # a single sample that is longer than all allowed: nothing gets smaller
        self._token_bytes = max(1.0, (self.meter.peak - floor) / tokens)
        self._shrink(lower, f"{tokens} tokens took {self.meter.peak} bytes, the limit is {limit}")

    def _choose(self) -> list[tuple[Tenant, int]]:
        rank = {job_id: place for place, job_id in enumerate(self._order)}
        tenants = sorted(self._tenants.values(), key=lambda t: rank.get(t.spec.job_id, len(rank)))
        candidates = [
            Candidate(t.spec.job_id, tuple(micro_batch.tokens for micro_batch in t.pending), t.left_out)
            for t in tenants
            if not t.waits
        ]
        chosen = [(self._tenants[job_id], count) for job_id, count in compose(candidates, self.token_budget).items()]
        if self.base.by_segment:
            return chosen
        return [chosen[number] for number in side_by_side([tenant.weights for tenant, _ in chosen])]

    def _run_or_isolate(self, chosen: list[tuple[Tenant, int]]) -> list[Tenant]:
        """Run a shared batch; when it raises, begin everyone's optimizer step anew, alone.

        So the adapter whose micro-batch raises is found, and ends alone.
        """
        error = attempt(partial(self._run, chosen))
        if error is None:
            return [tenant for tenant, _ in chosen]
        if len(chosen) == 1 and chosen[0][1] == 1:
            return self._recover(chosen[0][0], error)
        if is_out_of_memory(error):
            self._lower_budget(chosen)
        for tenant, _ in chosen:
            tenant.rewind_step()
        return [ran for tenant, _ in chosen for ran in self._run_or_isolate([(tenant, 1)])]

    def _recover(self, tenant: Tenant, error: Exception) -> list[Tenant]:
        """A lone micro-batch raised: out of memory runs it in smaller parts, anything else ends the job.

        What the others may have in a shared batch is no matter of its: if it is given up, they have what they had.
        """
        if not is_out_of_memory(error):
            self._fail(tenant, error)
            return []
        self.memory_shortages += 1
        self.meter.memory.release()
        if max(micro_batch.samples for micro_batch in tenant.pending) > 1:
            tenant.rewind_step(split=tenant.split * 2)
            return self._run_or_isolate([(tenant, 1)])
        self.budget.fits = self._fitted
        self._fail(tenant, too_long(tenant.pending, error))
        return []

    def _lower_budget(self, chosen: list[tuple[Tenant, int]]) -> None:
        """This many tokens were too many: compose smaller shared batches from now on."""
        tokens = sum(micro_batch.tokens for tenant, count in chosen for micro_batch in tenant.pending[:count])
        self.memory_shortages += 1
        self.budget.ran_out(tokens)
        logger.warning("out of memory at %d tokens; shared batches now hold at most %d", tokens, self.token_budget)
        self.meter.memory.release()

    def _shrink(self, tokens: int, why: str) -> None:
        """Shared batches and micro-batches hold at most so many tokens from now on."""
        self.memory_shortages += 1
        self.budget.passed_limit(tokens)
        self._whole_cap = max(self._whole_cap, self.micro_batch_cap)
        self.micro_batch_cap = min(self.micro_batch_cap, tokens)
        for tenant in self._tenants.values():
            tenant.limit_micro_batches(self.micro_batch_cap)
        logger.warning("%s; shared batches now hold at most %d tokens", why, tokens)

    def _use_room(self) -> None:
        """As many tokens as the limit has room for by now, by what a token took when it was passed.

        Where nothing has left since, that is what it was lowered to. The limit itself is not tried out.
        """
        if self.memory_limit is None or not self._token_bytes:
            return
        self.meter.memory.release()
        tokens = int(_OF_ROOM * (self.memory_limit - self.meter.memory.used()) / self._token_bytes)
        self.budget.has_room(tokens)
        self.micro_batch_cap = max(self.micro_batch_cap, min(self._whole_cap, tokens))

    def _run(self, chosen: list[tuple[Tenant, int]]) -> None:
        """One forward and one backward for all chosen micro-batches."""
        micro_batches = [micro_batch for tenant, count in chosen for micro_batch in tenant.pending[:count]]
        self._ahead = run_ahead(micro_batches, self.base)
        losses = self.base.losses(pack(micro_batches, self.base.device))
        torch.stack([share.loss for share in losses]).sum().backward()  # type: ignore[no-untyped-call]
        self.batch_tokens = self.work.add(micro_batches)
        self.batch_adapters = len(chosen)
        place = 0
        for tenant, count in chosen:
            tenant.ran(losses[place : place + count])
            place += count

    def _clips(self, due: Sequence[Tenant]) -> Sequence[Clip | None]:
        """How the gradients of those are clipped whose optimizer step is complete; on a CPU each does it itself."""
        if self.base.by_segment or not due:
            return [None] * len(due)
        gradients, losses = [tenant.weights.gradient for tenant in due], [tenant.step_loss for tenant in due]
        limits, scale = [tenant.norm_limit for tenant in due], due[0].weights.gradient_scale
        return clip_together(gradients, losses, limits, scale)

    def _trains(self, tenant: Tenant) -> bool:
        return self._tenants.get(tenant.spec.job_id) is tenant

    def _complete(self, due: Sequence[Tenant]) -> None:
        """All micro-batches of the optimizer steps of these have run: take the steps, and do what is due after them.

        Where the numbers come late they are read after the next shared batch, unless somebody waits for this step.
        """
        values: list[torch.Tensor] = []
        for tenant, clip in zip(due, self._clips(due), strict=True):
            try:
                values.append(tenant.take_step(clip))
            except Exception as error:
                self._fail(tenant, error)
            else:
                self._unsettled.append(tenant)
        self._readback = Readback(values) if values else None
        pausing = [tenant for tenant in self._unsettled if tenant.pauses]
        if pausing or not self.late:
            self._settle()
        for tenant in pausing:
            if self._trains(tenant):
                try:
                    with self.meter.aside():
                        self._after_step(tenant)
                except Exception as error:
                    self._fail(tenant, error)

    def _settle(self) -> None:
        """Read the numbers of the optimizer steps that were taken, and let each tenant count its own."""
        tenants, readback = self._unsettled, self._readback
        self._unsettled, self._readback = [], None
        for tenant, values in zip(tenants, readback.read() if readback else (), strict=True):
            if self._trains(tenant):
                try:
                    tenant.settle(values)
                except Exception as error:
                    self._fail(tenant, error)

    def _after_step(self, tenant: Tenant) -> None:
        if tenant.wants_evaluation:
            tenant.evaluated(*evaluate(self.base, tenant.evaluation_batches(), self.meter.memory.release))
        if tenant.finished:
            self._finish(tenant)
        elif tenant.wants_checkpoint:
            tenant.save_checkpoint()

    # -- ends ----------------------------------------------------------------------------------------------------

    def _finish(self, tenant: Tenant) -> None:
        """Write the adapter; one that cannot be written stays here, and is tried again."""
        try:
            written = tenant.export()
        except Exception as error:
            self._fail(tenant, error)
        else:
            if written:
                self._end(tenant, TenantState.SUCCEEDED, tenant.end_reason)

    def _write_again(self) -> None:
        """Try once more to write what could not be written, for those whose turn it is, and let go who may leave."""
        for tenant in [tenant for tenant in self._tenants.values() if tenant.may_leave]:
            self._end(tenant, TenantState.DETACHED)
        due = [tenant for tenant in self._tenants.values() if tenant.files.due]
        if due:
            self._settle()
        for tenant in due:
            if not self._trains(tenant):
                continue
            if tenant.finished:
                self._finish(tenant)
            else:
                tenant.files.write_again(tenant.progress)

    def _fail(self, tenant: Tenant, error: Exception) -> None:
        if is_device_lost(error):  # nobody's fault that could be told; all go on from their checkpoints elsewhere
            raise error
        self._end(tenant, TenantState.FAILED, reason_of(error))

    def _end(self, tenant: Tenant, state: TenantState, reason: str | None = None) -> None:
        self.meter.forget(tenant.spec.job_id)
        tenant.files.close()
        self._ended[tenant.spec.job_id] = tenant.report(state, reason)
        del self._tenants[tenant.spec.job_id]
        self.budget.adapter_left()
        self._use_room()

    # -- speed ---------------------------------------------------------------------------------------------------

    @property
    def step_seconds(self) -> float:
        """Mean duration of the latest shared batches; 0 before the first."""
        return sum(seconds for seconds, _ in self._speed) / len(self._speed) if self._speed else 0.0

    @property
    def tokens_per_s(self) -> float:
        """Real tokens per second of all tenants together, over the latest shared batches."""
        seconds = sum(seconds for seconds, _ in self._speed)
        return sum(tokens for _, tokens in self._speed) / seconds if seconds > 0 else 0.0
