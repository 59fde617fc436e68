"""The verb `ask`: jobs, at any step of theirs, and their base models answer questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from gpu_actor.contract.errors import JobFailedError, LorayError
from gpu_actor.contract.questions import Answer, Sampling
from orchestrator.asking.inquiry import Inquiry, answers
from orchestrator.cli import progress
from orchestrator.cli.model_options import QUANTIZATIONS, OneStep, caller, one_of, step_of
from orchestrator.cli.options import Address, AsJson

Asked = Annotated[
    list[str],
    typer.Argument(
        metavar="JOB... QUESTION",
        help="Names or ids of jobs, or output folders; then the question, unless --file has the questions.",
        show_default=False,
    ),
]


def ask(
    asked: Asked,
    base: Annotated[bool, typer.Option("--base", help="The bare base model answers too.")] = False,
    step: OneStep = "latest",
    system: Annotated[str | None, typer.Option("--system", help="System message.", show_default=False)] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="Questions, one a line.", show_default=False)
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 200,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Choose among so many likeliest.", show_default=False)] = None,
    top_p: Annotated[float | None, typer.Option(help="Choose among this likeliest share.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="The same seed chooses the same tokens.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends an answer.", show_default=False)] = None,
    quantization: Annotated[
        str | None, typer.Option(metavar="nf4|int8", help="Of a base that no actor hosts.", show_default=False)
    ] = None,
    allow_pickle: Annotated[bool, typer.Option(help="Read .bin files of a base that no actor hosts.")] = False,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Ask jobs that train, wait, have ended or failed; the newest step answers, while they train on.

    The actor that hosts the base model answers between two shared batches; where there is none, this machine does.
    """
    jobs, questions = (asked, _lines(file)) if file is not None else (asked[:-1], asked[-1:])
    if not jobs:
        raise LorayError('say who is asked, and what: loray ask JOB "What is the sun?"')
    fields: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    inquiry = Inquiry(
        jobs=tuple(jobs),
        questions=tuple(questions),
        base=base,
        step=step_of(step),
        system=system,
        sampling=_sampling(**fields, seed=seed, stop=tuple(stop or ())),
        quantization=one_of(QUANTIZATIONS, "--quantization", quantization) if quantization else None,
        allow_pickle=allow_pickle,
    )
    states = answers(inquiry, caller(address))
    found = _last(states) if as_json else _show(states, several=len(questions) > 1)
    if as_json:
        progress.print_json([asdict(answer) for answer in found])
    if missing := [f"{answer.name}: {answer.error}" for answer in found if answer.error is not None]:
        raise JobFailedError("\n".join(dict.fromkeys(missing)))


def _lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise LorayError(f"--file: {file} cannot be read: {error}") from None
    questions = [line for line in lines if line]
    if not questions:
        raise LorayError(f"--file: {file} has no question; write one a line")
    return questions


def _sampling(**fields: Any) -> Sampling:
    try:
        return Sampling(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise LorayError(f"--{option}: {first['input']!r}: {first['msg']}") from None


def _last(states: Iterator[list[Answer]]) -> list[Answer]:
    found: list[Answer] = []
    for state in states:
        found = state
    return found


def _show(states: Iterator[list[Answer]], *, several: bool) -> list[Answer]:
    """Print answers one behind the other, each as it comes."""
    found: list[Answer] = []
    place, printed = 0, -1  # the answer being printed; how much of it is, -1: not even its heading
    for found in states:
        while place < len(found):
            answer = found[place]
            if printed < 0 and (answer.text or answer.finish_reason):
                print(_heading(found, place, several=several), flush=True)
                printed = 0
            if printed >= 0:
                print(_harmless(answer.text[printed:]), end="", flush=True)
                printed = len(answer.text)
            if answer.finish_reason is None:
                break
            print(f"(no answer: {answer.error})\n" if answer.error else "\n", flush=True)
            place, printed = place + 1, -1
    return found


def _harmless(text: str) -> str:
    """Without what a terminal would obey: a model may write anything."""
    return "".join(character for character in text if character.isprintable() or character in "\n\t")


def _heading(found: Sequence[Answer], place: int, *, several: bool) -> str:
    answer = found[place]
    who = f"{answer.name}, {answer.which}" if answer.which else answer.name
    is_first = place == 0 or found[place - 1].question != answer.question
    return f"# {answer.question}\n\n[{who}]" if several and is_first else f"[{who}]"
