"""How many kernels one training step asks of a device, counted on a CPU: no time is measured, and no card is needed.

    python benchmarks/count_kernels.py [--json FILE]

A step is forward, backward, clip and AdamW of a bf16 LLaMA, all seven linear layers adapted, rank 16. What a layer
takes is the difference between models of three and of two layers; a step of 32 layers follows from it. Attention is
counted per sequence, as it is made where there is no kernel for rows of many lengths.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

from common import workload  # first: it makes this folder's parent importable

import numpy as np  # isort: skip
import torch
from common.kernel_counter import KernelCounter
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from gpu_actor.batch.shared_batch import MicroBatch, pack
from gpu_actor.contract.config import TrainingConfig
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.model.base_model import BaseModel
from gpu_actor.model.freeze import freeze
from gpu_actor.operators.products import GroupedProducts, LoopedProducts, Products
from gpu_actor.training.clip import clip_together
from gpu_actor.training.optimizer import make_optimizer

_RANK, _LENGTH = 16, 12
_LAYERS = (2, 3)
_DEPTH = 32  # of the model whose step is told
# adapters, samples of each, dropout
_CASES = [(1, 4, 0.0), (8, 4, 0.0), (8, 4, 0.05), (16, 2, 0.0), (1, 1, 0.0), (64, 1, 0.0)]
OPERATORS: dict[str, Products | None] = {
    "segment by segment": None,
    "one product per adapter": LoopedProducts(),
    "one product for all": GroupedProducts(),
}


@dataclass(frozen=True)
class Row:
    """What one step takes, in kernels."""

    case: str
    operator: str
    layer: int
    attention: int
    step: int


def _model(layers: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def peft_step(layers: int) -> KernelCounter:
    """One job of four samples, as `Trainer(bf16=True)` runs it."""
    lora = PeftLoraConfig(r=_RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(_model(layers), lora)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)
    ids = torch.randint(3, 128, (4, _LENGTH))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return _second(step)


def loray_step(
    layers: int,
    jobs: int,
    samples: int,
    dropout: float,
    products: Products | None,
    rank: int = _RANK,
    length: int = _LENGTH,
) -> KernelCounter:
    """Jobs of so many samples each, `length` tokens long, together."""
    model = _model(layers)
    freeze(model)
    base = BaseModel("tiny", model, kernels="cuda")
    with patch("gpu_actor.model.body.has_varlen", return_value=False):  # a CPU has no such kernel
        base.body.pack().close()
    base.body.routing.products = products
    adapters = [base.new_adapter(LoraConfig(r=rank, lora_dropout=dropout)) for _ in range(jobs)]
    optimizers = [make_optimizer(weights, TrainingConfig()) for weights in adapters]
    random = np.random.default_rng(0)
    ids = [random.integers(3, 128, length, dtype=np.int32) for _ in range(samples)]
    seeds = tuple(range(samples)) if dropout else None

    def step() -> None:
        batch = pack([MicroBatch(weights, ids, ids, dropout_seeds=seeds) for weights in adapters], base.device)
        losses = [found.loss for found in base.losses(batch)]
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        gradients = [weights.gradient for weights in adapters]
        clips = clip_together(gradients, [loss.detach() for loss in losses], [1.0] * jobs, 1.0)
        for optimizer, clip, weights in zip(optimizers, clips, adapters, strict=True):
            optimizer.grad_scale, optimizer.found_inf = clip.divisor, clip.bad  # type: ignore[attr-defined]
            optimizer.step()
            weights.zero_grad()

    return _second(step)


def _second(step: Callable[[], None]) -> KernelCounter:
    """Count the second step: the first one also makes the optimizer's moments."""
    step()
    with KernelCounter() as counter:
        step()
    return counter


def row_of(case: str, operator: str, step: Callable[[int], KernelCounter]) -> Row:
    few, many = (step(layers) for layers in _LAYERS)
    layer = many.total - few.total
    return Row(case, operator, layer, many.attention - few.attention, few.total + (_DEPTH - _LAYERS[0]) * layer)


def measure() -> list[Row]:
    """All cases."""
    rows = [row_of("1 x 4", "PEFT, autocast", peft_step)]
    for jobs, samples, dropout in _CASES:
        name = f"{jobs} x {samples}" + (f", dropout {dropout}" if dropout else "")
        for operator, products in OPERATORS.items():
            step = partial(loray_step, jobs=jobs, samples=samples, dropout=dropout, products=products)
            rows.append(row_of(name, operator, step))
    return rows


def slopes(rows: list[Row]) -> dict[str, float]:
    """By operator, what each further adapter of one sample adds to a layer outside attention, from 1 to 64 of them."""
    outside = {(row.case, row.operator): row.layer - row.attention for row in rows}
    return {name: (outside["64 x 1", name] - outside["1 x 1", name]) / 63 for name in OPERATORS}


def main() -> None:
    """Count, and print the table and the slopes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="a file for machines")
    arguments = parser.parse_args()
    workload.set_threads(1)
    rows = measure()
    table = Table(title="Kernels of one training step")
    for heading in (
        "adapters x samples",
        "updates are made",
        "a layer",
        "of it attention",
        f"a step of {_DEPTH} layers",
    ):
        table.add_column(heading, justify="left" if heading in ("adapters x samples", "updates are made") else "right")
    for row in rows:
        table.add_row(row.case, row.operator, f"{row.layer:,}", f"{row.attention:,}", f"{row.step:,}")
    console = Console(width=110)
    console.print(table)
    for operator, slope in slopes(rows).items():
        console.print(f"Each further adapter, {operator}: {slope:.1f} kernels a layer outside attention.")
    if arguments.json:
        arguments.json.write_text(json.dumps([vars(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
