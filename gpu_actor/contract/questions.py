"""Questions to a base model and its adapters, and their answers: plain values, so that they travel without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from gpu_actor.contract.strict import Strict

ANSWERING_SHARE = 0.25
"""Most of an actor's time that answers take from the training of its jobs."""

MOST_CHOICES = 128
MOST_LIKELIEST = 20

Step = Literal["latest", "best"] | int


class Sampling(Strict):
    """How the tokens of one answer are chosen, and where it ends; names and meanings are those of transformers."""

    max_tokens: int = Field(200, ge=1, le=1_000_000, description="Most tokens of the answer.")
    temperature: float = Field(0.0, ge=0, le=100, description="0 takes the likeliest token each time.")
    top_k: int | None = Field(None, ge=1, description="Choose among so many likeliest tokens.")
    top_p: float | None = Field(None, gt=0, le=1, description="Choose among the likeliest that make up this share.")
    seed: int = Field(0, ge=0, lt=2**63, description="The same seed chooses the same tokens, whatever the company.")
    stop: tuple[str, ...] = Field((), max_length=16, description="Texts that end the answer, and are left out of it.")


class ChatMessage(Strict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Conversation(Strict):
    """A whole conversation, which the answer goes on with; it goes through the chat template."""

    messages: tuple[ChatMessage, ...] = Field(min_length=1, max_length=10_000)


class RawText(Strict):
    """A text that the answer goes on with as it is, without chat template."""

    text: str


class TokenIds(Strict):
    """Token ids that the answer goes on with as they are."""

    ids: tuple[int, ...] = Field(min_length=1, max_length=1_000_000)


Question = str | Conversation | RawText | TokenIds
"""Plain text is what a user says, after the request's `system`."""


class Answerer(Strict):
    """Who answers.

    Attributes:
        name: For people.
        folder: The job's output folder; None is the bare base model.
        job_id: Of a job that may be in training where the question goes: its newest step then answers.
        step: Which step answers.
        total_steps: Of the job, if known.
        chat_template: As in `DatasetConfig`.
    """

    name: str
    folder: str | None = None
    job_id: str | None = None
    step: Step = "latest"
    total_steps: int | None = None
    chat_template: str | None = None


class AskRequest(Strict):
    """Questions, each of which every answerer answers.

    Attributes:
        request_id: Chosen by the client; the same one again changes nothing.
        base_model: Of all answerers.
        system: What the conversation begins with, if anything.
        choices: Answers to each question, each with the next seed.
        likeliest: Give each token of the answers, with so many of the likeliest in its place; None: text alone.
        score_prompt: Also give the tokens of the question, each with its log-probability.
    """

    request_id: str
    base_model: str
    questions: tuple[Question, ...] = Field(min_length=1, max_length=10_000)
    answerers: tuple[Answerer, ...] = Field(min_length=1, max_length=1_000)
    system: str | None = None
    sampling: Sampling = Sampling()
    choices: int = Field(1, ge=1, le=MOST_CHOICES)
    likeliest: int | None = Field(None, ge=0, le=MOST_LIKELIEST)
    score_prompt: bool = False


@dataclass(frozen=True)
class ScoredToken:
    """One token, and what the model thought of it.

    Attributes:
        text: Of this token alone.
        log_probability: Natural logarithm; None: nothing came before it.
        likeliest: The likeliest tokens in its place, with their log-probabilities, the likeliest first.
    """

    text: str
    log_probability: float | None
    likeliest: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Answer:
    """One answer, as far as it is made.

    Attributes:
        name: Of the answerer.
        question: What was asked, or the last of what was said; token ids are not repeated.
        which: Which step answers, in words: `step 120 of 300`; empty for the bare base model.
        text: The answer so far.
        log_probabilities: Of each of its tokens, natural logarithm.
        finish_reason: `stop`, `length`, `error`; None: it goes on.
        error: Why there is no answer.
        error_type: The name of that error's class.
        prompt_tokens: Tokens of the question.
        tokens: Those of the answer, if `likeliest` was given; the one that ended it is the last of them.
        prompt: Those of the question, if `score_prompt` was.
    """

    name: str
    question: str
    which: str = ""
    text: str = ""
    log_probabilities: tuple[float, ...] = ()
    finish_reason: str | None = None
    error: str | None = None
    error_type: str | None = None
    prompt_tokens: int = 0
    tokens: tuple[ScoredToken, ...] = ()
    prompt: tuple[ScoredToken, ...] = ()
