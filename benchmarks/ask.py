"""Answers per second against `generate` of transformers on PEFT's model, measured in one run.

    python benchmarks/ask.py             SmolLM2-135M-Instruct, nine minutes
    python benchmarks/ask.py --quick     a tiny random model, seconds: does the benchmark itself work?

Both sides answer the same prompts greedily, with as many tokens, from the same adapters, in fp32 on the CPU, with the
same threads. They take turns after a warm-up; the ratio is taken within each round.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from common import workload
from common.loray_loop import load_loray
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from gpu_actor.adapters.peft_files import save_adapter
from gpu_actor.adapters.weights import AdapterWeights
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.contract.questions import Sampling
from gpu_actor.generation.generator import Generator
from gpu_actor.generation.reply import Reply
from gpu_actor.model.base_model import BaseModel
from gpu_actor.paths.locations import find_base

ADAPTERS = 8
_SHORTEST, _LONGEST = 20, 60  # tokens of a question
_ROWS = (
    ("1 answer", 1, 1),
    ("8 answers, one adapter", 8, 1),
    ("8 answers, 8 adapters", 8, 8),
    ("32 answers, 8 adapters", 32, 8),
)
Answers = list[list[int]]


def main() -> int:
    """Measure, print, and say by the exit code whether both sides gave the same answers."""
    parser = argparse.ArgumentParser(description="Compare answers of Loray with generate of transformers and PEFT.")
    parser.add_argument("--quick", action="store_true", help="a tiny random model; the numbers mean little")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    arguments = parser.parse_args()
    workload.quiet()
    threads = workload.set_threads()
    tokens, rounds = (8, 1) if arguments.quick else (24, 3)
    with tempfile.TemporaryDirectory() as folder:
        ref = workload.tiny_base(Path(folder)) if arguments.quick else workload.DEMO_BASE
        base = load_loray(ref)
        sides = _Sides(ref, base, Path(folder), tokens)
        rows = []
        for number, (name, *size) in enumerate(_ROWS, 1):  # minutes each on a slow machine: it says how far it is
            print(f"{number} of {len(_ROWS)}: {name}", flush=True)
            rows.append(_row(sides, name, *size, rounds))
            print(f"   ratio {median(rows[-1]['ratios']):.2f}", flush=True)
    _print(rows, threads, tokens)
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")
    return 0 if min(row["equal"] for row in rows) > 0.9 else 1


class _Sides:
    """Both sides, with the same adapters and prompts."""

    def __init__(self, ref: str, base: BaseModel, folder: Path, tokens: int) -> None:
        """Make adapters, and load them into PEFT's model."""
        self._tokens = tokens
        random = np.random.default_rng(0)
        lengths = random.integers(_SHORTEST, _LONGEST, max(answers for _, answers, _ in _ROWS))
        self._prompts = [random.integers(3, base.description.vocab_size, n, dtype=np.int32) for n in lengths]
        self._generator = Generator(base)
        self._weights = [_adapter(base, seed) for seed in range(ADAPTERS)]
        model: Any = AutoModelForCausalLM.from_pretrained(find_base(ref).place, dtype=torch.float32)
        model.generation_config.eos_token_id = None  # every answer has all its tokens
        for number, weights in enumerate(self._weights):
            own = folder / f"adapter-{number}"
            own.mkdir()
            save_adapter(own, weights, ref)
            if number:
                self._peft.load_adapter(str(own), str(number))
            else:
                self._peft = PeftModel.from_pretrained(model, str(own), "0").eval()

    def loray(self, answers: int, adapters: int) -> Answers:
        """All answers in one batch."""
        asked = [
            Reply(self._weights[number % adapters], self._prompts[number], Sampling(max_tokens=self._tokens))
            for number in range(answers)
        ]
        for reply in asked:
            self._generator.add(reply)
        self._generator.run()
        return [reply.tokens for reply in asked]

    def peft(self, answers: int, adapters: int) -> Answers:
        """One batch per adapter, padded on the left."""
        found: Answers = [[] for _ in range(answers)]
        for adapter in range(adapters):
            self._peft.set_adapter(str(adapter))
            numbers = range(adapter, answers, adapters)
            longest = max(len(self._prompts[number]) for number in numbers)
            ids = torch.zeros(len(numbers), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, number in enumerate(numbers):
                prompt = torch.from_numpy(self._prompts[number].astype(np.int64))
                ids[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = prompt, 1
            with torch.no_grad():
                made = self._peft.generate(
                    input_ids=ids, attention_mask=mask, max_new_tokens=self._tokens, do_sample=False, pad_token_id=0
                )
            for row, number in enumerate(numbers):
                found[number] = made[row, longest:].tolist()
        return found


def _adapter(base: BaseModel, seed: int) -> AdapterWeights:
    weights = base.new_adapter(LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    weights.initialise(seed)
    noise = torch.randn(weights.flat.shape, generator=torch.Generator().manual_seed(seed))
    weights.flat.data.add_(noise, alpha=0.02)  # B starts at zero: without it all would answer alike
    return weights


def _row(sides: _Sides, name: str, answers: int, adapters: int, rounds: int) -> dict[str, Any]:
    """Tokens per second of both sides, and the share of answers that are the same."""
    seconds: dict[str, list[float]] = {"loray": [], "peft": []}
    turns: list[tuple[str, Callable[[int, int], Answers]]] = [("loray", sides.loray), ("peft", sides.peft)]
    found = {side: run(answers, adapters) for side, run in turns}  # warm-up
    for number in range(rounds):
        for side, run in turns if number % 2 == 0 else turns[::-1]:
            started = time.perf_counter()
            run(answers, adapters)
            seconds[side].append(time.perf_counter() - started)
    made = sum(map(len, found["loray"]))
    return {
        "what": name,
        "loray": made / median(seconds["loray"]),
        "peft": made / median(seconds["peft"]),
        "ratios": sorted(theirs / ours for ours, theirs in zip(seconds["loray"], seconds["peft"], strict=True)),
        "equal": float(np.mean([a == b for a, b in zip(found["loray"], found["peft"], strict=True)])),
    }


def _print(rows: list[dict[str, Any]], threads: int, tokens: int) -> None:
    table = Table(title=f"Tokens of answers per second, {tokens} tokens each, {threads} threads", title_justify="left")
    for column in ("", "Loray", "PEFT, generate", "ratio", "least .. largest", "same answers"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        ratios = row["ratios"]
        shown = [f"{row['loray']:.1f}", f"{row['peft']:.1f}", f"{median(ratios):.2f}"]
        table.add_row(row["what"], *shown, f"{ratios[0]:.2f} .. {ratios[-1]:.2f}", f"{row['equal']:.0%}")
    Console(highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(main())
