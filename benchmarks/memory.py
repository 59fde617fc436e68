"""Predicted against measured peak memory, for models of many families, each in a fresh process.

    python benchmarks/memory.py              every model, several minutes
    python benchmarks/memory.py --quick      one small model: does the benchmark itself work?

The first guess comes from the configurations of the model and of the job alone. The second comes from the same model
corrected by the first ten measured steps; it is held against the steps after those, whose batches are larger.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from common import workload  # first: it makes this folder's parent importable
from rich.console import Console
from rich.table import Table

MIB = 2**20
_FIT_STEPS = 10
_RANK = 16
# Tokens of the batches: the largest come last, so that the fit has to say what it has not seen.
_FIT_TOKENS = [160, 320, 240, 400, 280, 360, 200, 400, 320, 240, 400]
_HELD_OUT_TOKENS = [480, 512, 440, 512]

_COMMON = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "SmolLM2-135M": (
        "llama",
        {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
         "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
    ),
    "llama-60M": (
        "llama",
        {"vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8,
         "num_attention_heads": 8, "num_key_value_heads": 8},
    ),
    "mistral-90M": (
        "mistral",
        {"vocab_size": 32000, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 10,
         "num_attention_heads": 10, "num_key_value_heads": 2, "sliding_window": 64},
    ),
    "qwen2-100M": (
        "qwen2",
        {"vocab_size": 50000, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 14,
         "num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "qwen3-80M": (
        "qwen3",
        {"vocab_size": 50000, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12,
         "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "tie_word_embeddings": True},
    ),
    "gpt2-124M": ("gpt2", {"n_layer": 12, "n_embd": 768, "n_head": 12}),
    "gemma2-70M": (
        "gemma2",
        {"vocab_size": 64000, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8,
         "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64, "sliding_window": 64},
    ),
    "gpt_neox-70M": (
        "gpt_neox",
        {"vocab_size": 50304, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6,
         "num_attention_heads": 8},
    ),
    "phi3-90M": (
        "phi3",
        {"vocab_size": 32064, "hidden_size": 640, "intermediate_size": 1792, "num_hidden_layers": 10,
         "num_attention_heads": 10, "num_key_value_heads": 5},
    ),
    "opt-60M": (
        "opt",
        {"vocab_size": 50272, "hidden_size": 512, "ffn_dim": 2048, "num_hidden_layers": 8, "num_attention_heads": 8,
         "word_embed_proj_dim": 512},
    ),
}  # fmt: skip
QUICK = {"llama-4M": ("llama", {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 512,
                                "num_hidden_layers": 3, "num_attention_heads": 4})}  # fmt: skip


def main() -> int:
    """Measure every model in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description="Predicted against measured peak memory.")
    parser.add_argument("--quick", action="store_true", help="one small model; the numbers mean little")
    parser.add_argument("--models", nargs="*", metavar="NAME", help="only these")
    parser.add_argument("--checkpointing", action="store_true", help="with gradient checkpointing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one, checkpointing=arguments.checkpointing)))
        return 0
    names = arguments.models or list(QUICK if arguments.quick else MODELS)
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    for name in names:
        command = [sys.executable, __file__, "--one", name, *(["--checkpointing"] if arguments.checkpointing else [])]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            print(f"{name} cannot be measured: {_reason(done.stderr)}")
            failed.append(name)
        else:
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(_line(rows[-1]), flush=True)
    if not rows:
        return 1
    errors = {key: mean(abs(row[key] / row["measured"] - 1) for row in rows) for key in ("first", "fitted")}
    _print(rows, errors)
    if arguments.json:
        result = {"load": os.getloadavg()[0], "rows": rows, "mean_absolute_error": errors}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if failed else 0


def measure(name: str, *, checkpointing: bool = False) -> dict[str, Any]:
    """Build, load and train one model here; predictions and measured peaks in bytes."""
    import torch

    from gpu_actor.adapters.shapes import adapter_activation_bytes, adapter_bytes
    from gpu_actor.contract.config import LoraConfig
    from gpu_actor.model.base_model import BaseModel
    from gpu_actor.model.describe import describe_base
    from gpu_actor.training.trainer import CoTrainer
    from orchestrator.scheduler.estimate import MemoryFit, prior_memory
    from orchestrator.scheduler.view import ActorShape

    workload.quiet()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        _in_a_child(_save, name, folder)
        description = _in_a_child(describe_base, folder)
        lora = LoraConfig(r=_RANK)
        most = max(_HELD_OUT_TOKENS)
        prior = prior_memory(description, ActorShape("cpu", most, 4, checkpointing))
        adapter = adapter_bytes(description, lora)
        own = adapter_activation_bytes(description, lora, most)
        trainer = CoTrainer(BaseModel.load(folder, gradient_checkpointing=checkpointing), most)
        before = trainer.meter.memory.used()
        trainer.attach(_tenant(trainer.base, lora, Path(folder)))
        fit, largest = MemoryFit(prior), 0
        steps = []
        while not trainer.idle:
            trainer.step()
            for sample in trainer.meter.take():
                steps.append(sample)
                largest = max(largest, sample.tokens)
                if len(steps) <= _FIT_STEPS:
                    fit.observe(largest, sample.adapter_bytes, max(s.peak_bytes for s in steps))
    if not steps:
        raise RuntimeError(f"{name}: nothing was measured: {trainer.reports()}")
    model = fit.model
    return {
        "model": name,
        "checkpointing": checkpointing,
        "parameters": description.parameters,
        "counted": description.activations is not None,
        "first": prior.fixed_bytes + prior.bytes_per_token * most + adapter + own,
        "fitted": model.fixed_bytes + model.bytes_per_token * most + adapter,
        "measured": max(step.peak_bytes for step in steps),
        "idle": before,
        "steps": [[step.tokens, step.peak_bytes] for step in steps],
    }


def _line(row: dict[str, Any]) -> str:
    """A model that is done, before the table of all."""
    first, fitted = (row[key] / row["measured"] for key in ("first", "fitted"))
    peak = row["measured"] / MIB
    return f"{row['model']}: {peak:.0f} MiB measured, first guess {first:.3f} of it, after the steps {fitted:.3f}"


def _reason(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if "Error" in line]
    return lines[-1] if lines else "no reason given"


def _in_a_child(function: Any, *arguments: Any) -> Any:
    """Call a function in a process of its own: what it leaves behind is not measured."""
    import multiprocessing

    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _save(name: str, folder: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    kind, settings = {**MODELS, **QUICK}[name]
    config = AutoConfig.for_model(kind, **{**_COMMON, **settings})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def _tenant(base: Any, lora: Any, folder: Path) -> Any:
    """A job whose optimizer steps have the wanted numbers of tokens: four samples each, in the file's order."""
    from gpu_actor.contract.config import AdapterSpec, DatasetConfig, TrainingConfig
    from gpu_actor.data.dataset import load_dataset
    from gpu_actor.training.tenant import Tenant

    tokens = [*_FIT_TOKENS, *_HELD_OUT_TOKENS]
    rows = [{"input_ids": [5] * (n // 4), "labels": [5] * (n // 4)} for n in tokens for _ in range(4)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = AdapterSpec(
        job_id="job",
        name="job",
        base_model="base",
        dataset=DatasetConfig(path=str(folder / "data.jsonl"), format="tokens"),
        lora=lora,
        training=TrainingConfig(per_device_train_batch_size=4, num_train_epochs=1.0, shuffle=False, cutoff_len=512),
        output_dir=str(folder / "out"),
    )
    data = load_dataset(spec.dataset, spec.training, lambda: None, base.description.vocab_size)
    return Tenant(spec, 1, base.new_adapter(lora), data)


def _print(rows: list[dict[str, Any]], errors: dict[str, float]) -> None:
    table = Table(title=f"Peak memory of a step of {max(_HELD_OUT_TOKENS)} tokens, MiB (load {os.getloadavg()[0]:.1f})")
    headings = ("model", "M parameters", "measured", "first guess", "ratio", f"after {_FIT_STEPS} steps", "ratio")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for row in rows:
        table.add_row(
            row["model"] + (" (ckpt)" if row["checkpointing"] else ""),
            f"{row['parameters'] / 1e6:.0f}",
            f"{row['measured'] / MIB:.0f}",
            f"{row['first'] / MIB:.0f}",
            f"{row['first'] / row['measured']:.3f}",
            f"{row['fitted'] / MIB:.0f}",
            f"{row['fitted'] / row['measured']:.3f}",
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"Mean absolute error: first guess {errors['first']:.1%}, after {_FIT_STEPS} steps {errors['fitted']:.1%}."
    )


if __name__ == "__main__":
    sys.exit(main())
