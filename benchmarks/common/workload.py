"""The work that both sides do: a base model, jobs that differ in everything, and mixed-length samples."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs without an installation

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from gpu_actor.contract.config import AdapterSpec, DatasetConfig, TrainingConfig
from gpu_actor.contract.lora_config import LoraConfig

DEMO_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
BATCH_SIZE = 4
_MEDIAN_LENGTH, _SPREAD = 70, 0.7  # of the log-normal distribution of sample lengths
_SHORTEST, _LONGEST = 12, 512
EQUAL_LENGTH = 64  # of every sample, where all are to have the same
_PROMPT_SHARE = 0.4  # of a sample's tokens, masked in the loss
_JOB_WORDS = 200  # tokens that one job's samples are made of, so that there is something to learn
_SEED = 20240607

# rank, alpha, targets, learning rate, schedule: the jobs of one benchmark, in this order
_JOBS: list[tuple[int, int, str | list[str], float, str]] = [
    (8, 16, "all-linear", 2e-4, "linear"),
    (16, 32, ["q_proj", "v_proj"], 1e-4, "cosine"),
    (4, 8, ["q_proj", "k_proj", "v_proj", "o_proj"], 5e-4, "constant"),
    (32, 32, "all-linear", 1e-4, "linear"),
    (8, 8, ["gate_proj", "up_proj", "down_proj"], 3e-4, "cosine"),
    (16, 16, "all-linear", 2e-4, "constant"),
    (64, 16, ["q_proj", "k_proj", "v_proj", "o_proj"], 5e-5, "linear"),
    (2, 4, "all-linear", 1e-3, "linear"),
]


@dataclass(frozen=True)
class Job:
    """One LoRA job: rank, rate and so on, and its samples (token ids, labels) in the order in which they are read."""

    spec: AdapterSpec
    samples: list[tuple[list[int], list[int]]]

    @property
    def tokens(self) -> int:
        """Real tokens of the whole run, padding not counted."""
        return sum(len(ids) for ids, _ in self.samples)

    def batches(self) -> list[list[tuple[list[int], list[int]]]]:
        """The samples of each optimizer step."""
        return [self.samples[i : i + BATCH_SIZE] for i in range(0, len(self.samples), BATCH_SIZE)]


@dataclass(frozen=True)
class Run:
    """What one side did: wall-clock seconds, real tokens, and the loss of every optimizer step of every job."""

    seconds: float
    tokens: int
    losses: list[list[float]]

    @property
    def rate(self) -> float:
        """Real tokens per second."""
        return self.tokens / self.seconds


def tiny_base(folder: Path) -> str:
    """Write a tiny random model, for a benchmark that only has to work."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,  # so large that training changes the losses visibly
    )
    LlamaForCausalLM(config).save_pretrained(folder / "tiny")
    return str(folder / "tiny")


def make_jobs(
    folder: Path, vocabulary: int, numbers: Iterable[int], steps: int, dropout: float = 0.0, *, equal: bool = False
) -> list[Job]:
    """The jobs of these numbers, `steps` optimizer steps each; data files and outputs lie below `folder`.

    With `equal` every sample has the same length, so that no batch needs padding.
    """
    return [_make_job(folder / f"job-{number}", vocabulary, number, steps, dropout, equal) for number in numbers]


def _make_job(folder: Path, vocabulary: int, number: int, steps: int, dropout: float, equal: bool) -> Job:
    rank, alpha, targets, rate, schedule = _JOBS[number]
    samples = _samples(number, vocabulary, steps * BATCH_SIZE, equal)
    folder.mkdir(parents=True)
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps({"input_ids": ids, "labels": labels}) + "\n" for ids, labels in samples))
    spec = AdapterSpec(
        job_id=f"job-{number}",
        name=f"job-{number}",
        base_model="base",
        dataset=DatasetConfig(path=str(path), format="tokens"),
        lora=LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets),
        training=TrainingConfig(
            learning_rate=rate,
            lr_scheduler_type=schedule,  # type: ignore[arg-type]
            max_steps=steps,
            per_device_train_batch_size=BATCH_SIZE,
            cutoff_len=_LONGEST,
            shuffle=False,
            seed=number,
        ),
        output_dir=str(folder / "out"),
    )
    return Job(spec, samples)


def _samples(number: int, vocabulary: int, count: int, equal: bool) -> list[tuple[list[int], list[int]]]:
    """Lengths are evenly spaced quantiles of the distribution, shuffled: few samples, yet no luck of the draw."""
    random = np.random.default_rng([_SEED, number])
    normal = NormalDist(math.log(_MEDIAN_LENGTH), _SPREAD)
    lengths = [math.exp(normal.inv_cdf((place + 0.5) / count)) for place in range(count)]
    if equal:
        lengths = [float(EQUAL_LENGTH)] * count
    random.shuffle(lengths)
    words = random.integers(3, vocabulary, _JOB_WORDS)
    samples = []
    for wanted in lengths:
        length = min(max(round(wanted), _SHORTEST), _LONGEST)
        ids = random.choice(words, length).tolist()
        prompt = round(length * _PROMPT_SHARE)
        samples.append((ids, [-100] * prompt + ids[prompt:]))
    return samples


def padding_share(jobs: Sequence[Job]) -> float:
    """The share of padding in the batches, each padded to its longest sample."""
    padded = sum(max(len(ids) for ids, _ in batch) * len(batch) for job in jobs for batch in job.batches())
    return 1 - sum(job.tokens for job in jobs) / padded


def set_threads(threads: int | None = None) -> int:
    """Use so many CPU threads, by default OMP_NUM_THREADS or else one per core; returns the number."""
    torch.set_num_threads(threads or int(os.environ.get("OMP_NUM_THREADS", 0)) or len(os.sched_getaffinity(0)))
    return torch.get_num_threads()


def quiet() -> None:
    """No progress bars and no warnings between the results."""
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def processor() -> str:
    """The processor's name where Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
