"""What OpenAI's clients send. A field that has no effect here is refused by name, unless it says the default."""

from __future__ import annotations

import secrets
import uuid
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from gpu_actor.contract.questions import (
    MOST_CHOICES,
    MOST_LIKELIEST,
    AskRequest,
    ChatMessage,
    Conversation,
    Question,
    RawText,
    Sampling,
    TokenIds,
)
from gpu_actor.contract.strict import Strict
from orchestrator.endpoint.openai.models import Model

MOST_ANSWERS = 256
"""Of one request: its prompts times its choices."""

_CHAT_TOKENS, _COMPLETION_TOKENS = 1024, 16  # where a request names no limit; the second is OpenAI's

Ids = Annotated[list[int], Field(min_length=1, max_length=1_000_000)]


class StreamOptions(Strict):
    """What a stream brings along."""

    include_usage: bool = Field(default=False, description="Counts of tokens, in a last chunk.")


class _Common(Strict):
    """The fields of both kinds."""

    model: str = Field(min_length=1, max_length=1024, description="A base model, a job, or job@step.")
    temperature: float | None = Field(default=None, ge=0, le=2, description="0 takes the likeliest token; null: 1.")
    top_p: float | None = Field(default=None, gt=0, le=1, description="Choose among this likeliest share.")
    top_k: int | None = Field(default=None, ge=1, description="Choose among so many likeliest; not in OpenAI's API.")
    n: int | None = Field(default=None, ge=1, le=MOST_CHOICES, description="Answers to each prompt; null: 1.")
    stop: str | list[str] | None = Field(default=None, max_length=16, description="Texts that end an answer.")
    seed: int | None = Field(default=None, description="The same seed chooses the same tokens; null: any.")
    stream: bool | None = Field(default=None, description="Send the answer as it is made.")
    stream_options: StreamOptions | None = Field(default=None, description="What a stream brings along.")
    frequency_penalty: float | None = Field(default=None, ge=0, le=0, description="Only 0.")
    presence_penalty: float | None = Field(default=None, ge=0, le=0, description="Only 0.")

    @model_validator(mode="after")
    def _streams(self) -> _Common:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options does nothing without stream; set stream, or leave it out")
        return self

    @property
    def choices(self) -> int:
        """Answers to each prompt."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with counts of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, max_tokens: int) -> Sampling:
        """How tokens are chosen."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=secrets.randbits(62) if self.seed is None else self.seed % 2**63,
            stop=tuple(text for text in stop if text),
        )

    def asking(self, model: Model, questions: tuple[Question, ...], max_tokens: int, **fields: Any) -> AskRequest:
        """The question to the actor that hosts the model."""
        return AskRequest(
            request_id=uuid.uuid4().hex,
            base_model=model.base_model,
            questions=questions,
            answerers=(model.answerer,),
            sampling=self.sampling(max_tokens),
            choices=self.choices,
            **fields,
        )


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"] = Field(description="What it is: `text`, nothing else.")
    text: str = Field(description="The text.")


class MessageIn(Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description="Who speaks.")
    content: str | list[TextPart] = Field(description="What is said: text, or parts of text.")

    def turn(self) -> ChatMessage:
        """As the chat template reads it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return ChatMessage(role="system" if self.role == "developer" else self.role, content=content)


class TextFormat(Strict):
    """The form of an answer."""

    type: Literal["text"] = Field(description="Text, nothing else.")


class ChatRequest(_Common):
    """`POST /v1/chat/completions`."""

    messages: list[MessageIn] = Field(min_length=1, max_length=10_000, description="The conversation so far.")
    max_tokens: int | None = Field(default=None, ge=1, le=1_000_000, description="Most tokens of an answer.")
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1_000_000, description="The same.")
    logprobs: bool | None = Field(default=None, description="Give each token with its log-probability.")
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_LIKELIEST, description="And so many likeliest ones.")
    response_format: TextFormat | None = Field(default=None, description="Only text.")

    @model_validator(mode="after")
    def _fits(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs does nothing without logprobs; set logprobs, or leave it out")
        return self

    def to_ask(self, model: Model) -> AskRequest:
        """The question to the actor."""
        return self.asking(
            model,
            (Conversation(messages=tuple(message.turn() for message in self.messages)),),
            self.max_completion_tokens or self.max_tokens or _CHAT_TOKENS,
            likeliest=(self.top_logprobs or 0) if self.logprobs else None,
        )


class CompletionRequest(_Common):
    """`POST /v1/completions`."""

    prompt: str | Ids | list[str] | list[Ids] = Field(description="A text or token ids, or several of them.")
    max_tokens: int | None = Field(default=None, ge=0, le=1_000_000, description="Most tokens of an answer.")
    echo: bool | None = Field(default=None, description="Begin each answer with its prompt.")
    logprobs: int | None = Field(
        default=None, ge=0, le=MOST_LIKELIEST, description="Give each token with so many likeliest ones."
    )
    best_of: int | None = Field(default=None, ge=1, le=1, description="Only 1.")

    @model_validator(mode="after")
    def _fits(self) -> CompletionRequest:
        count = len(self.prompts) * self.choices
        if not 0 < count <= MOST_ANSWERS:
            raise ValueError(f"prompt and n ask for {count} answers; allowed: 1 to {MOST_ANSWERS} in a request")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens 0 asks for nothing without echo; set echo, or a limit above 0")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """Every prompt."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]

    @property
    def leaves_out(self) -> bool:
        """Whether prompts alone are asked for. The actor makes one token all the same, which is left out."""
        return self.max_tokens == 0

    def to_ask(self, model: Model) -> AskRequest:
        """The question to the actor."""
        questions: tuple[Question, ...] = tuple(
            RawText(text=prompt) if isinstance(prompt, str) else TokenIds(ids=tuple(prompt)) for prompt in self.prompts
        )
        most = _COMPLETION_TOKENS if self.max_tokens is None else max(self.max_tokens, 1)
        return self.asking(model, questions, most, likeliest=self.logprobs, score_prompt=bool(self.echo))
