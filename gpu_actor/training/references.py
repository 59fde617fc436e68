"""The reference of preference training: log-probabilities that the policy is compared with, each computed once.

The reference is the base model with the adapter off, or another adapter on the same base, so it costs no second
copy of the base. Each text runs as a segment of its own: its log-probability is a function of the text alone, so a
restart, another order or other company gives the same bits on a CPU, and nothing of it needs to be saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from gpu_actor.adapters.peft_files import read_adapter
from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.batch.pairs import ReferenceLogProbs
from gpu_actor.batch.shared_batch import MicroBatch, pack
from gpu_actor.contract.config import AdapterSpec
from gpu_actor.contract.errors import AdapterError
from gpu_actor.losses.objectives import segment_losses
from gpu_actor.model.base_model import BaseModel


def reference_folder(spec: AdapterSpec) -> str | None:
    """The folder of the reference adapter; None where the reference is the base model, or there is none."""
    if spec.training.objective != "dpo":
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
        raise AdapterError(f"the reference adapter of training.objective dpo cannot be loaded: {error}") from error


def fill_references(micro_batches: Sequence[MicroBatch], base: BaseModel) -> None:
    """Compute what these micro-batches still miss: one forward without gradients for all of them."""
    missing: list[tuple[ReferenceLogProbs, int]] = []
    texts: list[MicroBatch] = []
    for micro_batch in micro_batches:
        task = micro_batch.pairs
        if task is None or task.references is None:
            continue
        for place, number in enumerate(task.numbers):
            if task.references.has(number):
                continue
            missing.append((task.references, number))
            for side in (2 * place, 2 * place + 1):
                text, labels = micro_batch.sequences[side], micro_batch.labels[side]
                texts.append(MicroBatch(task.references.weights, [text], [labels]))
    if not missing:
        return
    batch = pack(texts, base.device)
    with torch.no_grad():
        losses = [share.loss for share in segment_losses(base.hidden(batch), batch, base.head)]
    log_p = (-torch.stack(losses)).tolist()
    for place, (references, number) in enumerate(missing):
        references.put(number, log_p[2 * place], log_p[2 * place + 1])
