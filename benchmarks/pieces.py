"""Pieces of a step on a CPU, each computed in two ways.

    python benchmarks/pieces.py [--rows N] [--rounds N] [--quick]

Norms, rotary embeddings and SwiGLU: the stock model's, and those that are put in their places, forward and backward.
Products with frozen weights: torch's own, which are MKL's, and oneDNN's.

The sizes are those of SmolLM2-135M, in fp32, on one thread. Both ways take turns; what counts is the processor time of
the thread, and the ratio within each round.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from common import workload  # first: it makes this folder's parent importable

import torch  # isort: skip
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from gpu_actor.elementwise.rms_norm import RmsNorm
from gpu_actor.elementwise.rotary_embedding import rotate
from gpu_actor.elementwise.swiglu import swiglu

_WIDTH, _INNER, _HEADS, _KEY_HEADS, _HEAD, _LAYERS, _VOCABULARY = 576, 1536, 9, 3, 64, 30, 49152
_EPS = 1e-5
_REPEATS = 20  # of one measurement of element-wise work
_OPERATIONS = 2e8  # multiplications of one measurement of a product, at least
_ROWS_OF_A_JOB = (32, 70, 150, 320)  # in a shared batch

Function = Callable[..., torch.Tensor]
Row = dict[str, Any]


@dataclass(frozen=True)
class Layers:
    """Linear layers of one shape: what they are, inputs, outputs, and how many a model has."""

    what: str
    inputs: int
    outputs: int
    count: int


_LINEAR = (
    Layers("query, output", _WIDTH, _WIDTH, 2 * _LAYERS),
    Layers("key, value", _WIDTH, _KEY_HEADS * _HEAD, 2 * _LAYERS),
    Layers("gate, up", _WIDTH, _INNER, 2 * _LAYERS),
    Layers("down", _INNER, _WIDTH, _LAYERS),
    Layers("head", _WIDTH, _VOCABULARY, 1),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Time pieces of a step on a CPU, each computed in two ways.")
    parser.add_argument("--rows", type=int, default=300, help="tokens of the shared batch, for element-wise work")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="one round, few rows, no head")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    arguments = parser.parse_args()
    workload.quiet()
    torch.set_num_threads(1)
    rounds = 1 if arguments.quick else arguments.rounds
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    elementwise = [
        {"what": what, **_in_turn(partial(_both_ways, stock, inputs), partial(_both_ways, replaced, inputs), rounds)}
        for what, stock, replaced, inputs in _elementwise(arguments.rows)
    ]
    _print(f"{arguments.rows} rows, forward and backward", ("stock", "replaced"), elementwise, console)
    layers, sizes = (_LINEAR[:-1], _ROWS_OF_A_JOB[:1]) if arguments.quick else (_LINEAR, _ROWS_OF_A_JOB)
    products = [row for rows in sizes for row in _products(layers, rows, rounds)]
    _print(f"products, {workload.processor()}", ("MKL", "oneDNN"), products, console)
    if arguments.json:
        result = {"elementwise": elementwise, "products": products}
        arguments.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


def _print(title: str, ways: tuple[str, str], rows: Sequence[Row], console: Console) -> None:
    first, second = ways
    table = Table(title=f"{title}; one thread, load {os.getloadavg()[0]:.1f}")
    for heading in ("piece", f"{first}, ms", f"{second}, ms", f"{second} / {first}", "least .. largest"):
        table.add_column(heading, justify="left" if heading == "piece" else "right")
    for row in rows:
        span = f"{row['ratios'][0]:.2f} .. {row['ratios'][-1]:.2f}"
        table.add_row(row["what"], f"{row['first']:.2f}", f"{row['second']:.2f}", f"{row['ratio']:.2f}", span)
    console.print(table)


def _in_turn(first: Callable[[], float], second: Callable[[], float], rounds: int) -> Row:
    """Median milliseconds of each, and the ratios of all rounds in order; who begins changes from round to round."""
    spent: tuple[list[float], list[float]] = ([], [])
    for number in range(-1, rounds):
        for place in (0, 1) if number % 2 else (1, 0):
            seconds = (first, second)[place]()
            if number >= 0:  # else it was the warm-up
                spent[place].append(seconds)
    return _row(spent)


def _row(spent: tuple[Sequence[float], Sequence[float]]) -> Row:
    ratios = sorted(ours / theirs for theirs, ours in zip(*spent, strict=True))
    times = {name: 1e3 * median(seconds) for name, seconds in zip(("first", "second"), spent, strict=True)}
    return {**times, "ratio": median(ratios), "ratios": ratios, "seconds": spent}


def _elementwise(rows: int) -> list[tuple[str, Function, Function, list[torch.Tensor]]]:
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


def _both_ways(function: Function, inputs: Sequence[torch.Tensor]) -> float:
    """Processor seconds of a function, forward and backward."""
    started = time.thread_time()
    for _ in range(_REPEATS):
        leaves = [value.clone().requires_grad_() for value in inputs]
        function(*leaves).sum().backward()
    return (time.thread_time() - started) / _REPEATS


def _products(all_layers: Sequence[Layers], rows: int, rounds: int) -> list[Row]:
    """Each kind of layer forward and backward, and all of a model's together."""
    onednn = torch.ops.mkldnn._linear_pointwise
    found: list[Row] = []
    for way in ("forward", "backward"):
        whole = ([0.0] * rounds, [0.0] * rounds)
        for layers in all_layers:
            weight = torch.randn(layers.outputs, layers.inputs)
            matrix = weight if way == "forward" else weight.t()
            given = torch.randn(rows, matrix.shape[1])
            repeats = max(1, round(_OPERATIONS / (rows * weight.numel())))
            mkl = partial(_forward, partial(F.linear, weight=matrix), given, repeats)
            other = partial(_forward, lambda x, w=matrix: onednn(x, w, None, "none", [], ""), given, repeats)
            row = _in_turn(mkl, other, rounds)
            for sums, seconds in zip(whole, row["seconds"], strict=True):
                sums[:] = [total + layers.count * one for total, one in zip(sums, seconds, strict=True)]
            found.append({"what": f"{rows} rows, {layers.what}, {way}", **row})
        found.append({"what": f"{rows} rows, all of a model, {way}", **_row(whole)})
    return found


def _forward(function: Function, given: torch.Tensor, repeats: int) -> float:
    """Processor seconds of a function."""
    started = time.thread_time()
    for _ in range(repeats):
        function(given)
    return (time.thread_time() - started) / repeats


if __name__ == "__main__":
    main()
