"""Who is asked what, and where it is answered: by the actor that hosts the base model, else by one local process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_actor.contract import file_names
from gpu_actor.contract.config import Quantization, is_template_path
from gpu_actor.contract.errors import AdapterError, ClusterUnavailableError, LorayError
from gpu_actor.contract.questions import Answer, Answerer, AskRequest, Sampling, Step
from gpu_actor.contract.roots import outside
from orchestrator.jobs.job_file import load_jobs

_POLL_SECONDS = 0.15
_MARKS = (file_names.JOB, file_names.ADAPTER_CONFIG)

Call = Callable[..., Any]
"""Calls a method of the orchestrator by name."""
_Place = tuple[int, int]  # number of the answerer, number of the question


@dataclass(frozen=True)
class Inquiry:
    """What somebody wants to know.

    Attributes:
        jobs: Names or ids of jobs, or output folders.
        questions: What each of them is asked.
        base: Let the bare base model answer too, first.
        step: Which step of a job answers.
        system: What the conversation begins with.
        sampling: How answers are made.
        quantization: Of a base model that a local process loads.
        allow_pickle: Let a local process read .bin files where there are no safetensors.
    """

    jobs: tuple[str, ...]
    questions: tuple[str, ...]
    base: bool = False
    step: Step = "latest"
    system: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    quantization: Quantization | None = None
    allow_pickle: bool = False


@dataclass(frozen=True)
class Part:
    """The answerers of a request that answer in one place.

    Attributes:
        actor: Name of the actor; None: no actor hosts the base model, so a local process answers.
        request: Theirs alone, under an id of its own.
        numbers: Their places among all answerers.
    """

    actor: str | None
    request: AskRequest
    numbers: tuple[int, ...]


def check_reach(request: AskRequest, roots: Sequence[str]) -> None:
    """Check that nothing is read for a request from outside the allowed folders: who asks names the folders.

    Args:
        request: What is asked.
        roots: As in `outside`.

    Raises:
        AdapterError: A folder or a template lies elsewhere.
    """
    for who in request.answerers:
        template = who.chat_template if who.chat_template and is_template_path(who.chat_template) else None
        for path in (who.folder, template):
            if path is not None and (problem := outside(path, roots)):
                raise AdapterError(f"{who.name}: {problem}")


def divide(request: AskRequest, trains: Mapping[str, str], hosts: tuple[str, ...]) -> list[Part]:
    """Divide a request among the actors: the one that trains a job has its newest step, any host may answer the others.

    Args:
        request: Of one base model.
        trains: Actor by id of the jobs that it trains.
        hosts: The actors that are ready and host the base model.
    """
    at_home = [trains.get(who.job_id) if who.job_id is not None else None for who in request.answerers]
    at_home = [actor if actor in hosts else None for actor in at_home]
    # who could answer anywhere joins an actor that answers anyway
    anywhere = next((actor for actor in at_home if actor is not None), hosts[0] if hosts else None)
    chosen = [actor or anywhere for actor in at_home]
    parts = []
    for place, actor in enumerate(dict.fromkeys(chosen)):
        numbers = tuple(number for number, one in enumerate(chosen) if one == actor)
        fields = {
            "request_id": f"{request.request_id}-{place}",
            "answerers": tuple(request.answerers[number] for number in numbers),
        }
        parts.append(Part(actor, request.model_copy(update=fields), numbers))
    return parts


def answers(inquiry: Inquiry, call: Call | None) -> Iterator[list[Answer]]:
    """All answers, question by question, as far as they are made: again and again until all are.

    Args:
        inquiry: What is asked.
        call: Reaches the orchestrator; None: there is none, so output folders alone can be asked.

    Raises:
        LorayError: Somebody who is asked cannot be found, or no base model can be loaded.
    """
    found = [_answerer(ref, inquiry.step, call) for ref in inquiry.jobs]
    bases = list(dict.fromkeys(base for base, _ in found))
    if inquiry.base:
        shown = "base model" if len(bases) == 1 else ""
        found = [(base, Answerer(name=shown or f"base model {base}")) for base in bases] + found
    parts = [part for base in bases for part in _parts(inquiry, base, found, call)]
    made = {
        (number, place): Answer(found[number][1].name, question)
        for place, question in enumerate(inquiry.questions)
        for number in range(len(found))
    }
    order = sorted(made, key=lambda place: (place[1], place[0]))
    for _ in _in_turn([_of_part(part, inquiry, call, made) for part in parts]):
        yield [made[place] for place in order]


def _answerer(ref: str, step: Step, call: Call | None) -> tuple[str, Answerer]:
    """The base model of a job, and the job as an answerer.

    Raises:
        LorayError: It is neither an output folder nor known to the orchestrator.
    """
    folder = Path(ref).expanduser().absolute()
    if any((folder / name).is_file() for name in _MARKS):
        return _of_folder(ref, folder, step)
    if call is None:
        raise ClusterUnavailableError(
            f"{ref} is no output folder ({' or '.join(_MARKS)} would be there), and no cluster runs that knows such a "
            "job; give the job's output folder, or start the cluster with `loray serve`"
        )
    view = call("get_job", ref, again=True)
    spec = view["spec"]
    return spec["base_model"], Answerer(
        name=view["name"],
        folder=view["output_dir"],
        job_id=view["id"],
        step=step,
        total_steps=view["total_steps"] or None,
        chat_template=spec["dataset"]["chat_template"],
    )


def _of_folder(ref: str, folder: Path, step: Step) -> tuple[str, Answerer]:
    if (folder / file_names.JOB).is_file():
        (spec,) = load_jobs([folder / file_names.JOB])
        template = spec.dataset.chat_template
        return spec.base_model, Answerer(name=spec.name, folder=str(folder), step=step, chat_template=template)
    try:
        base = json.loads((folder / file_names.ADAPTER_CONFIG).read_text("utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{folder / file_names.ADAPTER_CONFIG}: damaged ({error})") from None
    return str(base), Answerer(name=ref, folder=str(folder), step=step)


def _parts(inquiry: Inquiry, base: str, found: Sequence[tuple[str, Answerer]], call: Call | None) -> list[Part]:
    numbers = [number for number, (other, _) in enumerate(found) if other == base]
    request = AskRequest(
        request_id=uuid.uuid4().hex,
        base_model=base,
        questions=inquiry.questions,
        answerers=tuple(found[number][1] for number in numbers),
        system=inquiry.system,
        sampling=inquiry.sampling,
    )
    if call is None:
        return [Part(None, request, tuple(numbers))]
    return [
        Part(part["actor"], AskRequest.model_validate(part["request"]), tuple(numbers[i] for i in part["numbers"]))
        for part in call("ask", request.model_dump(), again=True)
    ]


def _of_part(part: Part, inquiry: Inquiry, call: Call | None, made: dict[_Place, Answer]) -> Iterator[None]:
    """Put the answers of one part into `made`, again and again until they are whole."""
    if part.actor is None or call is None:
        source = _locally(part.request, inquiry)
    else:
        source = _at_actor(part.actor, part.request.request_id, call)
    for found in source:
        for place, answer in enumerate(found):
            question, number = divmod(place, len(part.numbers))
            made[part.numbers[number], question] = answer
        yield


def _in_turn(sources: list[Iterator[None]]) -> Iterator[None]:
    """Something new of each source in turn, until all have ended."""
    while sources:
        sources = [source for source in sources if next(source, _END) is not _END]
        yield


_END = object()


def _at_actor(actor: str, request_id: str, call: Call) -> Iterator[list[Answer]]:
    """The answers of an actor.

    Raises:
        LorayError: It is gone.
    """
    while True:
        found: list[Answer] | None = call("answers", actor, request_id, again=True)
        if found is not None:
            yield found
            if all(answer.finish_reason is not None for answer in found):
                return
        time.sleep(_POLL_SECONDS)


def _locally(request: AskRequest, inquiry: Inquiry) -> Iterator[list[Answer]]:
    """The answers of a process of this machine, which loads the base model for them.

    Raises:
        LorayError: It cannot; the message is its own.
    """
    command = [sys.executable, "-m", "gpu_actor.ask"]
    command += ["--quantization", inquiry.quantization] if inquiry.quantization else []
    command += ["--allow-pickle"] if inquiry.allow_pickle else []
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8"
        )
        try:
            if process.stdin is None or process.stdout is None:
                raise RuntimeError("a process without pipes")
            process.stdin.write(request.model_dump_json())
            process.stdin.close()
            for line in process.stdout:
                yield [_read(fields) for fields in json.loads(line)]
            if process.wait():
                errors.seek(0)
                said = errors.read().strip().splitlines()
                raise LorayError(said[-1] if said else f"the process that answers ended with {process.returncode}")
        finally:
            process.kill()
            process.wait()


def _read(fields: Mapping[str, Any]) -> Answer:
    return Answer(**{**fields, "log_probabilities": tuple(fields["log_probabilities"])})
