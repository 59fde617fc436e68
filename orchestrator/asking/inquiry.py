"""What somebody wants to know: answered by the actor that hosts the base model, else by one local process."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pydantic import TypeAdapter

from gpu_actor.contract.config import Quantization
from gpu_actor.contract.errors import ClusterUnavailableError
from gpu_actor.contract.questions import Answer, Answerer, AskRequest, Sampling, Step
from orchestrator.asking.questions import Part
from orchestrator.results.model_process import lines_of
from orchestrator.results.trained_job import Call, find_result

_POLL_SECONDS = 0.15

ANSWERS = TypeAdapter(list[Answer])
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
    found = find_result(ref, call)
    return found.base_model, Answerer(
        name=found.name,
        folder=found.folder,
        job_id=found.job_id,
        step=step,
        total_steps=found.total_steps,
        chat_template=found.chat_template,
    )


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
        Part(
            part["actor"],
            AskRequest.model_validate(part["request"], strict=False),  # as JSON it has no tuples
            tuple(numbers[i] for i in part["numbers"]),
        )
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
    try:
        while True:
            found: list[Answer] | None = call("answers", actor, request_id, again=True)
            if found is not None:
                yield found
                if all(answer.finish_reason is not None for answer in found):
                    return
            time.sleep(_POLL_SECONDS)
    finally:  # whoever leaves early too: the actor makes no answer for nobody
        with contextlib.suppress(ClusterUnavailableError):
            call("withdraw", actor, request_id)


def _locally(request: AskRequest, inquiry: Inquiry) -> Iterator[list[Answer]]:
    """The answers of a process of this machine, which loads the base model for them.

    Raises:
        LorayError: It cannot; the message is its own.
    """
    arguments = ["--quantization", inquiry.quantization] if inquiry.quantization else []
    arguments += ["--allow-pickle"] if inquiry.allow_pickle else []
    for line in lines_of("gpu_actor.ask", arguments, request.model_dump_json()):
        yield ANSWERS.validate_json(line)
