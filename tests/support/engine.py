"""Helpers for engine tests: tenants of a base model in this process, no Ray."""

from unittest.mock import patch

import numpy as np
import torch

from gpu_actor.adapters.start_check import check_adapter_fits
from gpu_actor.batch.shared_batch import MicroBatch
from gpu_actor.contract.config import AdapterSpec, DatasetConfig, TrainingConfig
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.data.dataset import load_dataset
from gpu_actor.model.base_model import BaseModel
from gpu_actor.training.references import read_reference
from gpu_actor.training.tenant import Tenant
from gpu_actor.training.trainer import CoTrainer
from support.tiny import family_model, tiny_model, token_rows, write_rows


def tiny_hooked(kind="llama", dtype=torch.float32, **changes):
    """A tiny random base model, hooked and probed."""
    return BaseModel.serve("tiny", tiny_model(kind, dtype=dtype, **changes))


def served_as_on_a_gpu(model, products, **settings):
    """A base that computes on the CPU as it would on a GPU, with these products for groups of adapters.

    But for attention in half precision, of which there is no kernel for a CPU: it is made per sequence.
    """
    with patch("gpu_actor.model.body.has_varlen", return_value=False):
        base = BaseModel.serve("tiny", model, kernels="cuda", **settings)
    base.body.routing.products = products
    return base


def family_hooked(family, dtype=torch.float32, **changes):
    """A tiny random base model of a family, with its peculiarities on, hooked and probed."""
    return BaseModel.serve("tiny", family_model(family, dtype=dtype, **changes))


def make_spec(folder, name, rows=None, lora=None, training=None, dataset=None):
    """A job with a data file and an output folder of its own below `folder`."""
    own = folder / name
    own.mkdir(parents=True, exist_ok=True)
    path = own / "data.jsonl"
    write_rows(path, rows if rows is not None else token_rows(12, seed=sum(map(ord, name))))
    return AdapterSpec(
        job_id=name,
        name=name,
        base_model="tiny",
        dataset=DatasetConfig(**{"path": str(path), "format": "tokens", **(dataset or {})}),
        lora=LoraConfig(**(lora or {})),
        training=TrainingConfig(**(training or {})),
        output_dir=str(own / "out"),
    )


def make_tenant(base, spec, attempt=1, mirror=None):
    """A tenant of `base`, loaded as the actor loads it."""
    check_adapter_fits(base.description, spec.lora)
    known = base.description
    data = load_dataset(spec.dataset, spec.training, no_tokenizer, known.vocab_size, known.longest_sequence)
    return Tenant(spec, attempt, base.new_adapter(spec.lora), data, read_reference(base, spec), mirror)


def no_tokenizer():
    raise RuntimeError("pre-tokenised data need no tokenizer")


def run_all(base, tenants, token_budget=256):
    """Train tenants together to their ends; returns the trainer."""
    trainer = CoTrainer(base, token_budget)
    for tenant in tenants:
        trainer.attach(tenant)
    while not trainer.idle:
        trainer.step()
    return trainer


def flat(tenant):
    """The adapter's values as one array."""
    return tenant.weights.flat.detach().clone()


def micro_batch(weights, lengths, seed=0, **settings):
    """Random sequences of the given lengths, all labelled but the first token."""
    random = np.random.default_rng(seed)
    ids = [random.integers(3, 128, n, dtype=np.int32) for n in lengths]
    return MicroBatch(weights, ids, ids, **settings)


def losses_of(base, batch):
    """The loss of every segment, in the batch's order."""
    return [found.loss for found in base.losses(batch)]
