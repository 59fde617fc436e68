"""What preference training must know before its own forward: log-probabilities that the policy is compared with.

The reference is the base model with the adapter off, or another adapter on the same base, so it costs no second
copy of the base. Each text runs as a segment of its own: its log-probability is a function of the text alone, so a
restart, another order or other company gives the same bits on a CPU, and nothing of it needs to be saved. The same
holds for the texts from which KTO estimates its KL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from gpu_actor.adapters.peft_files import read_adapter
from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.batch.shared_batch import MicroBatch, pack, split_samples
from gpu_actor.batch.unpaired import KlEstimate, UnpairedTask
from gpu_actor.contract.config import AdapterSpec
from gpu_actor.contract.errors import AdapterError
from gpu_actor.contract.objective_fields import REFERENCE_OBJECTIVES
from gpu_actor.data.samples import Labelled
from gpu_actor.model.base_model import BaseModel


def reference_folder(spec: AdapterSpec) -> str | None:
    """The folder of the reference adapter; None where the reference is the base model, or there is none."""
    if spec.training.objective not in REFERENCE_OBJECTIVES:
        return None
    return spec.training.reference_adapter or spec.lora.init_adapter


def read_reference(base: BaseModel, spec: AdapterSpec) -> AdapterWeights | None:
    """The adapter that `spec` is compared with, None for the base model itself.

    It may differ from the job's own adapter in rank, targets and scale: those are read from its own configuration.

    Raises:
        AdapterError: It cannot be read, or does not fit the base.
    """
    folder = reference_folder(spec)
    if folder is None:
        return None
    try:
        return read_adapter(Path(folder), base.new_adapter)
    except AdapterError as error:
        raise AdapterError(
            f"the reference adapter of training.objective {spec.training.objective} cannot be loaded: {error}"
        ) from error


def run_ahead(micro_batches: Sequence[MicroBatch], base: BaseModel) -> int:
    """Compute what the losses of these micro-batches need beside their own forward, without gradients.

    That is, the reference's log-probabilities of their answers, once for each sample of a run, and of KTO the KL of
    each whole micro-batch, once for all its parts.

    Returns:
        Tokens that were run forward for it.
    """
    wanted = [*_missing_references(micro_batches), *_missing_estimates(micro_batches)]
    texts = [text for ahead in wanted for text in ahead.texts]
    tokens = [text.tokens for text in texts]
    log_p: list[float] = []
    # No more tokens at a time than the shared batch itself has: without gradients they take less memory.
    most = sum(micro_batch.tokens for micro_batch in micro_batches)
    for run in split_samples(tokens, most=most) if texts else ():
        batch = pack(texts[run.start : run.stop], base.device)
        with torch.no_grad():
            losses = [share.loss for share in base.losses(batch)]
        log_p += (-torch.stack(losses)).tolist()
    start = 0
    for ahead in wanted:
        ahead.keep(*log_p[start : start + len(ahead.texts)])
        start += len(ahead.texts)
    return sum(tokens)


@dataclass(frozen=True)
class _Ahead:
    """Texts whose log-probabilities are wanted, and who keeps them."""

    texts: list[MicroBatch]
    keep: Callable[..., None]


def _missing_references(micro_batches: Sequence[MicroBatch]) -> Iterator[_Ahead]:
    for micro_batch in micro_batches:
        task = micro_batch.task
        if task is None or task.references is None:
            continue
        answers = list(zip(micro_batch.sequences, micro_batch.labels, strict=True))
        for place, number in enumerate(task.numbers):
            if not task.references.has(number):
                own = answers[task.width * place : task.width * (place + 1)]
                yield _Ahead(_apart(own, task.references.weights), partial(task.references.put, number))


def _missing_estimates(micro_batches: Sequence[MicroBatch]) -> Iterator[_Ahead]:
    """One for each KL, however many parts of its micro-batch are here."""
    met: set[KlEstimate] = set()
    for micro_batch in micro_batches:
        task = micro_batch.task
        if isinstance(task, UnpairedTask) and not task.kl.known and task.kl not in met:
            met.add(task.kl)
            under = (micro_batch.weights, task.references.weights)
            texts = [text for weights in under for text in _apart(task.kl.texts, weights)]
            yield _Ahead(texts, task.kl.settle)


def _apart(texts: Sequence[Labelled], weights: AdapterWeights | None) -> list[MicroBatch]:
    return [MicroBatch(weights, [ids], [labels]) for ids, labels in texts]
