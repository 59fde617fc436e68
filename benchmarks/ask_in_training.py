"""What answers cost training: an actor's loop with eight answers open all the time and without, in turn.

    python benchmarks/ask_in_training.py             SmolLM2-135M-Instruct, a few minutes
    python benchmarks/ask_in_training.py --quick     a tiny random model, seconds: does the benchmark itself work?

Four jobs train; for eight of their adapters' answers the actor may take `ANSWERING_SHARE` of its time. Both turns are
windows of the same run, so they train the same jobs from one window to the next.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from common import workload
from common.loray_loop import load_loray, make_tenant
from rich.console import Console

from gpu_actor.contract.questions import ANSWERING_SHARE, Answerer, AskRequest, Sampling, TokenIds
from gpu_actor.hosting.answering import Answering
from gpu_actor.model.base_model import BaseModel
from gpu_actor.training.trainer import CoTrainer

_JOBS, _ANSWERS, _ANSWER_TOKENS = 4, 8, 64
_ENDLESS = 2000  # optimizer steps of a job: more than any window needs


@dataclass(frozen=True)
class Window:
    """What was done in a stretch of time: real tokens trained, and tokens of answers."""

    seconds: float
    trained: int
    answered: int


class PlainTokens:
    """Stands for a tokenizer where questions are token ids, and nobody reads the answers."""

    eos_token_id = None

    def decode(self, tokens: list[int], **_: Any) -> str:
        """Ids, as text."""
        return " ".join(map(str, tokens))


class Actor:
    """The loop of an actor's training thread, with jobs that do not end."""

    def __init__(self, base: BaseModel, folder: Path) -> None:
        """Attach the jobs."""
        base.model.generation_config.eos_token_id = None  # every answer has all its tokens
        vocabulary = base.description.vocab_size
        self._trainer = CoTrainer(base)
        self._jobs = workload.make_jobs(folder, vocabulary, range(_JOBS), _ENDLESS)
        for job in self._jobs:
            self._trainer.attach(make_tenant(base, job))
        self._answering = Answering(base, self._trainer, PlainTokens)
        self._names: Iterator[int] = count()
        self._open: str | None = None

    def run(self, seconds: float, asked: bool) -> Window:
        """Train for so long; if `asked`, with `_ANSWERS` answers open at any time."""
        trained = answered = 0
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            begun = time.monotonic()
            self._trainer.step()
            trained += self._trainer.batch_tokens
            answered += self._asked() if asked else 0
            self._answering.after_batch(time.monotonic() - begun)
        spent = time.perf_counter() - started
        answered += self._close()
        return Window(spent, trained, answered)

    def _asked(self) -> int:
        """Ask anew where all is answered; tokens of the answers that were whole."""
        made = self._close() if self._answering.idle else 0
        if self._open is None:
            self._open = f"request {next(self._names)}"
            self._answering.open(self._request(self._open))
        return made

    def _close(self) -> int:
        """Withdraw what is open; the tokens of its answers so far."""
        if self._open is None:
            return 0
        answers = self._answering.answers(self._open) or []
        self._answering.withdraw(self._open)
        self._open = None
        return sum(len(answer.log_probabilities) for answer in answers)

    def _request(self, name: str) -> AskRequest:
        question = TokenIds(ids=tuple(self._jobs[0].samples[0][0][:40]))
        return AskRequest(
            request_id=name,
            base_model="base",
            questions=(question,) * (_ANSWERS // _JOBS),
            answerers=tuple(Answerer(name=job.spec.name, job_id=job.spec.job_id) for job in self._jobs),
            sampling=Sampling(max_tokens=_ANSWER_TOKENS),
        )


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure what answers cost training.")
    parser.add_argument("--quick", action="store_true", help="a tiny random model; the numbers mean little")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")
    arguments = parser.parse_args()
    workload.quiet()
    threads = workload.set_threads()
    seconds, rounds = (1.0, 1) if arguments.quick else (20.0, 4)
    with tempfile.TemporaryDirectory() as folder:
        ref = workload.tiny_base(Path(folder)) if arguments.quick else workload.DEMO_BASE
        base = load_loray(ref)
        result = _measure(Actor(base, Path(folder)), seconds, rounds)
    _print(result, threads)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _measure(actor: Actor, seconds: float, rounds: int) -> dict[str, Any]:
    """Rates of both turns, and the ratio within each round."""
    actor.run(seconds / 4, asked=True)  # warm-up
    windows: dict[bool, list[Window]] = {False: [], True: []}
    for number in range(rounds):
        for asked in (False, True) if number % 2 == 0 else (True, False):
            windows[asked].append(actor.run(seconds, asked))
    trained = {asked: [each.trained / each.seconds for each in runs] for asked, runs in windows.items()}
    return {
        "alone": median(trained[False]),
        "asked": median(trained[True]),
        "ratios": sorted(asked / alone for alone, asked in zip(trained[False], trained[True], strict=True)),
        "answers": median(each.answered / each.seconds for each in windows[True]),
    }


def _print(result: dict[str, Any], threads: int) -> None:
    ratios = result["ratios"]
    Console(highlight=False).print(
        f"{_JOBS} jobs train in one actor, {threads} threads; answers may take {ANSWERING_SHARE:.0%} of its time\n"
        f"trained tokens/s without answers       {result['alone']:8.1f}\n"
        f"trained tokens/s while {_ANSWERS} answers run    {result['asked']:8.1f}\n"
        f"  of those without                     {median(ratios):8.2f}   ({ratios[0]:.2f} .. {ratios[-1]:.2f})\n"
        f"tokens of answers/s meanwhile          {result['answers']:8.1f}"
    )


if __name__ == "__main__":
    sys.exit(main())
