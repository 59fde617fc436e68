"""Answers in the forms that OpenAI's clients read: whole, and as the chunks of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from gpu_actor.contract.questions import Answer, ScoredToken
from orchestrator.endpoint.openai.requests import ChatRequest, CompletionRequest

Json = dict[str, Any]


class _Form:
    """What both forms share.

    Attributes:
        kind: `object` of a whole answer.
        chunk_kind: `object` of a chunk.
    """

    kind = chunk_kind = ""
    _prefix = ""

    def __init__(self, model: str, choices: int) -> None:
        self._head: Json = {"id": f"{self._prefix}{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._choices = choices

    def whole(self, answers: Sequence[Answer]) -> Json:
        """The response to a request that is not streamed."""
        choices = [
            {"index": index, **self._whole_choice(answer, index), "finish_reason": answer.finish_reason}
            for index, answer in enumerate(answers)
        ]
        return {**self._head, "object": self.kind, "choices": choices, "usage": self.usage(answers)}

    def chunks(self, before: Sequence[Answer], now: Sequence[Answer]) -> Iterator[Json]:
        """What has come in since the last look: a chunk for each answer that has grown."""
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            if delta := self._delta(old, new, index):
                yield self._chunk([{"index": index, **delta, "finish_reason": new.finish_reason}])

    def first(self, index: int) -> Json | None:
        """The chunk that begins an answer, if there is one."""
        del index
        return None

    def last(self, answers: Sequence[Answer]) -> Json:
        """The chunk with the counts of tokens."""
        return {**self._chunk([]), "usage": self.usage(answers)}

    def usage(self, answers: Sequence[Answer]) -> Json:
        """Counts of tokens; a prompt counts once, however many answers it has."""
        prompt = sum(answer.prompt_tokens for answer in answers[:: self._choices])
        completion = sum(self._completion_tokens(answer) for answer in answers)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _chunk(self, choices: list[Json]) -> Json:
        return {**self._head, "object": self.chunk_kind, "choices": choices}

    def _completion_tokens(self, answer: Answer) -> int:
        return len(answer.log_probabilities)

    def _whole_choice(self, answer: Answer, index: int, /) -> Json:
        raise NotImplementedError

    def _delta(self, old: Answer, new: Answer, index: int, /) -> Json | None:
        raise NotImplementedError


class ChatForm(_Form):
    """`chat.completion`."""

    kind, chunk_kind, _prefix = "chat.completion", "chat.completion.chunk", "chatcmpl-"

    def __init__(self, request: ChatRequest) -> None:
        super().__init__(request.model, request.choices)
        self._scored = bool(request.logprobs)

    def first(self, index: int) -> Json | None:
        """The chunk that says who speaks."""
        delta = {"role": "assistant", "content": ""}
        return self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])

    def _whole_choice(self, answer: Answer, _: int) -> Json:
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(answer.tokens)}

    def _delta(self, old: Answer, new: Answer, _: int) -> Json | None:
        text, tokens = new.text[len(old.text) :], new.tokens[len(old.tokens) :]
        if not text and not tokens and new.finish_reason == old.finish_reason:
            return None
        return {"delta": {"content": text} if text else {}, "logprobs": self._logprobs(tokens)}

    def _logprobs(self, tokens: Sequence[ScoredToken]) -> Json | None:
        if not self._scored:
            return None
        content = [
            {
                **_token(token.text, token.log_probability or 0.0),
                "top_logprobs": [_token(text, value) for text, value in token.likeliest],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}


class CompletionForm(_Form):
    """`text_completion`."""

    kind = chunk_kind = "text_completion"
    _prefix = "cmpl-"

    def __init__(self, request: CompletionRequest) -> None:
        super().__init__(request.model, request.choices)
        self._request = request

    def _completion_tokens(self, answer: Answer) -> int:
        return 0 if self._request.leaves_out else super()._completion_tokens(answer)

    def _text(self, answer: Answer, index: int) -> str:
        """The text of a choice, after its prompt if that is echoed."""
        text = "" if self._request.leaves_out else answer.text
        if not self._request.echo:
            return text
        prompt = self._request.prompts[index // self._choices]
        return (prompt if isinstance(prompt, str) else "".join(token.text for token in answer.prompt)) + text

    def _tokens(self, answer: Answer) -> Sequence[ScoredToken]:
        return answer.prompt if self._request.leaves_out else (*answer.prompt, *answer.tokens)

    def _whole_choice(self, answer: Answer, index: int) -> Json:
        return {"text": self._text(answer, index), "logprobs": self._logprobs((), self._tokens(answer))}

    def _delta(self, old: Answer, new: Answer, index: int) -> Json | None:
        begun = bool(old.prompt_tokens)  # else nothing of it was sent, not even the prompt
        if not new.prompt_tokens:
            return None
        text = self._text(new, index)[len(self._text(old, index)) if begun else 0 :]
        before, now = self._tokens(old), self._tokens(new)
        if not text and len(now) == len(before) and new.finish_reason == old.finish_reason:
            return None
        return {"text": text, "logprobs": self._logprobs(before, now[len(before) :])}

    def _logprobs(self, before: Sequence[ScoredToken], tokens: Sequence[ScoredToken]) -> Json | None:
        if self._request.logprobs is None:
            return None
        offset = sum(len(token.text) for token in before)
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.log_probability for token in tokens],
            "top_logprobs": [_likeliest(token) for token in tokens] if self._request.logprobs else None,
            "text_offset": offsets,
        }


def _likeliest(token: ScoredToken) -> dict[str, float] | None:
    """The likeliest texts in a token's place, and its own; None where nothing came before it."""
    if token.log_probability is None:
        return None
    found: dict[str, float] = {}
    for text, value in (*token.likeliest, (token.text, token.log_probability)):
        found.setdefault(text, value)  # tokens may have one text: the likelier counts
    return found


def _token(text: str, log_probability: float) -> Json:
    whole = "\N{REPLACEMENT CHARACTER}" not in text  # else the bytes of half a character, which nobody knows here
    return {"token": text, "logprob": log_probability, "bytes": list(text.encode()) if whole else None}
