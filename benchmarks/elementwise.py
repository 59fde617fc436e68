"""Norms, rotary embeddings and SwiGLU: the stock model's, and those that are put in their places, forward and backward.

    python benchmarks/elementwise.py [--rows N] [--rounds N] [--quick]

The sizes are those of SmolLM2-135M, in fp32, on one thread of the CPU. Both take turns; what counts is the processor
time of the thread, and the ratio within each round.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from common import workload  # first: it makes this folder's parent importable

import torch  # isort: skip
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from gpu_actor.elementwise.rms_norm import RmsNorm
from gpu_actor.elementwise.rotary_embedding import rotate
from gpu_actor.elementwise.swiglu import swiglu

_WIDTH, _INNER, _HEADS, _KEY_HEADS, _HEAD = 576, 1536, 9, 3, 64
_EPS = 1e-5
_REPEATS = 20  # of one measurement

Function = Callable[..., torch.Tensor]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time element-wise work, stock and replaced.")
    parser.add_argument("--rows", type=int, default=300, help="tokens of the shared batch")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    arguments = parser.parse_args()
    workload.quiet()
    torch.set_num_threads(1)
    rounds = 1 if arguments.quick else arguments.rounds
    rows = [
        {"what": what, **measured(stock, replaced, inputs, rounds)}
        for what, stock, replaced, inputs in pieces(arguments.rows)
    ]
    title = f"forward and backward of {arguments.rows} rows, one thread, load {os.getloadavg()[0]:.1f}"
    table = Table("piece", "stock, ms", "replaced, ms", "replaced / stock", "least .. largest", title=title)
    for row in rows:
        span = f"{row['ratios'][0]:.2f} .. {row['ratios'][-1]:.2f}"
        table.add_row(row["what"], f"{row['stock']:.2f}", f"{row['replaced']:.2f}", f"{row['ratio']:.2f}", span)
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=2))


def pieces(rows: int) -> list[tuple[str, Function, Function, list[torch.Tensor]]]:
    """Name, both functions, and what they are called with."""
    norm = LlamaRMSNorm(_WIDTH, _EPS)
    norm.requires_grad_(False)
    ours = RmsNorm(norm.weight.detach(), torch.tensor(_EPS), torch.float32)
    angles = torch.randn(2, 1, rows, _HEAD)

    def both(function: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> Function:
        def joined(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            return torch.cat(function(query, key, *angles), dim=1)

        return joined

    heads = [torch.randn(1, count, rows, _HEAD) for count in (_HEADS, _KEY_HEADS)]
    inner = [torch.randn(rows, _INNER) for _ in range(2)]
    return [
        ("norm", norm, ours, [torch.randn(rows, _WIDTH)]),
        ("rotary embedding", both(apply_rotary_pos_emb), both(rotate), heads),
        ("SwiGLU", lambda gate, up: F.silu(gate) * up, swiglu, inner),
    ]


def measured(stock: Function, replaced: Function, inputs: list[torch.Tensor], rounds: int) -> dict[str, object]:
    """Milliseconds of each, and the ratios of all rounds in order; who begins changes from round to round."""
    spent: dict[Function, list[float]] = {stock: [], replaced: []}
    for number in range(-1, rounds):
        for function in (stock, replaced) if number % 2 else (replaced, stock):
            seconds = _seconds(function, inputs)
            if number >= 0:  # else it was the warm-up
                spent[function].append(seconds)
    ratios = sorted(ours / theirs for theirs, ours in zip(spent[stock], spent[replaced], strict=True))
    times = {name: 1e3 * median(spent[which]) for name, which in (("stock", stock), ("replaced", replaced))}
    return {**times, "ratio": median(ratios), "ratios": ratios}


def _seconds(function: Function, inputs: list[torch.Tensor]) -> float:
    started = time.thread_time()
    for _ in range(_REPEATS):
        leaves = [value.clone().requires_grad_() for value in inputs]
        function(*leaves).sum().backward()
    return (time.thread_time() - started) / _REPEATS


if __name__ == "__main__":
    main()
