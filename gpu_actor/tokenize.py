"""Samples to token ids and labels: chat template, which tokens carry loss, and the end of an answer.

A conversation is rendered by the tokenizer's own chat template (in transformers' sandbox) and tokenised once
as a whole. What an assistant turn covers is found by rendering, so no `{% generation %}` marks are needed:

- It starts where the template's generation prompt ends, so that all the model has to write itself is learned
  (Qwen3's empty `<think>` block, say). If a template has no generation prompt, or writes another one before a
  finished turn, it starts where the content starts.
- It ends after the text that closes a turn: `<|im_end|>`, `<|eot_id|>`, `</s>`. Blank text after that (the
  newline of ChatML) belongs to the template and is not learned, as in the training templates of TRL. If a
  template closes inner turns in another way than the last one, inner turns learn what both have in common.

A token across the start of an answer belongs to the answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu_actor.errors import DataError
from gpu_actor.record_types import Chat, Plain
from gpu_actor.samples import IGNORE_INDEX, IdArray

_OWN_DATA = "check the chat template, or give the samples in the format prompt_completion or tokens"


@dataclass(frozen=True)
class _Span:
    """Characters of the rendered text that are learned: an answer, and what closes it."""

    start: int
    content_end: int
    end: int


class SampleEncoder:
    """Turns samples into token ids and labels with one tokenizer."""

    def __init__(self, tokenizer: Any, train_on_inputs: bool) -> None:
        """Keep the tokenizer and read its chat template.

        Args:
            tokenizer: A tokenizer of transformers, fast or slow.
            train_on_inputs: Take loss on every token.
        """
        self._tokenizer = tokenizer
        self._train_on_inputs = train_on_inputs
        self._eos = tokenizer.eos_token_id
        try:
            self._template = tokenizer.get_chat_template() if tokenizer.chat_template else None
        except ValueError:  # several templates, none of them the default
            self._template = None

    def encode(self, sample: Plain | Chat) -> tuple[IdArray, IdArray]:
        """Token ids and unshifted labels of one sample, -100 where no loss is taken.

        Raises:
            DataError: There is no chat template, or it cannot render the sample.
        """
        if isinstance(sample, Chat):
            if self._template is not None:
                return self._encode_chat(sample)
            if sample.fallback is None:
                raise DataError(
                    "the base model's tokenizer has no chat template; use a chat model, "
                    "or give the samples as strings in the format prompt_completion or text"
                )
            sample = sample.fallback
        return self._encode_plain(sample)

    def _encode_plain(self, sample: Plain) -> tuple[IdArray, IdArray]:
        text = sample.prompt + sample.answer
        span = _Span(len(sample.prompt), len(text), len(text))
        # Whole-text loss takes in what the tokenizer adds by itself, such as a start token.
        whole = not sample.prompt
        return self._tokenise(text, [span], add_special_tokens=True, learn_all=whole, close=True)

    def _encode_chat(self, sample: Chat) -> tuple[IdArray, IdArray]:
        messages = list(sample.messages)
        text = self._render(messages)
        spans = [self._find_turn(messages, index, text) for index in sample.learned]
        # A template that writes nothing behind the last answer would never teach the model to stop.
        close = sample.learned[-1] == len(messages) - 1 and not text[spans[-1].content_end :].strip()
        return self._tokenise(text, spans, add_special_tokens=False, learn_all=False, close=close)

    def _find_turn(self, messages: list[dict[str, str]], index: int, text: str) -> _Span:
        """What message `index` covers in the rendered text."""
        head, tail = self._around(messages, index, text)
        content_end = len(text) - len(tail)
        # The head may differ from the text near its end: Qwen3 moves an answer's own <think> block.
        start = _common_length(head, text)
        if not text.endswith(tail) or content_end < start:
            raise DataError(f"the chat template does not write message {index} in one piece; {_OWN_DATA}")
        prompt = self._generation_prompt(messages[:index])
        if prompt is not None and len(prompt) <= start and text.startswith(prompt):
            start = len(prompt)
        closing = tail
        if index + 1 < len(messages):
            alone = self._around(messages[: index + 1], index, text)[1]
            closing = tail[: _common_length(alone, tail)]
            if len(closing) < len(alone):  # the next marker may begin as the closing one does: "<|"
                closing = re.sub(r"(?<=\s)\S+$", "", closing)
        return _Span(start, content_end, content_end + len(closing.rstrip() or closing))

    def _around(self, messages: list[dict[str, str]], index: int, text: str) -> tuple[str, str]:
        """The rendered text before and after the content of message `index`, found with a stand-in for it."""
        stand_in = "LorayStandIn"
        while stand_in in text:
            stand_in += "0"
        replaced = [*messages[:index], {**messages[index], "content": stand_in}, *messages[index + 1 :]]
        parts = self._render(replaced).split(stand_in)
        if len(parts) != 2:
            raise DataError(
                f"the chat template writes the content of message {index} (role {messages[index]['role']}) "
                f"{len(parts) - 1} times, where once is needed; {_OWN_DATA}"
            )
        return parts[0], parts[1]

    def _generation_prompt(self, messages: list[dict[str, str]]) -> str | None:
        """The conversation up to the point where the model takes over, if the template can write it."""
        if not messages or "add_generation_prompt" not in str(self._template):
            return None
        try:
            return self._render(messages, add_generation_prompt=True)
        except DataError:  # the template refuses the beginning of a conversation that it accepts as a whole
            return None

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # a template is a program of strangers and raises what it likes
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise DataError(f"the chat template refuses the conversation: {reason}") from None
        return str(text)

    def _tokenise(
        self, text: str, spans: list[_Span], *, add_special_tokens: bool, learn_all: bool, close: bool
    ) -> tuple[IdArray, IdArray]:
        """Tokenise the text, label the spans, and with `close` end on a learned end-of-text token."""
        ids, starts, ends = self._tokens_and_offsets(text, spans, add_special_tokens)
        learned = np.full(len(ids), learn_all)
        for span in spans:
            answer = (ends > span.start) & (starts < span.content_end)
            closing = (starts >= span.content_end) & (ends <= span.end) & (ends > starts)
            hits = np.flatnonzero(answer | closing)
            if len(hits):  # tokens between the first and the last may have no characters of their own
                learned[hits[0] : hits[-1] + 1] = True
        if close and self._eos is not None:
            if not len(ids) or ids[-1] != self._eos:
                ids, learned = np.append(ids, np.int32(self._eos)), np.append(learned, False)
            # From the end of the answer on: blanks there may have no characters of their own either.
            known = np.flatnonzero(learned)
            learned[known[-1] if len(known) else -1 :] = True
        if self._train_on_inputs:
            return ids, ids
        return ids, np.where(learned, ids, np.int32(IGNORE_INDEX))

    def _tokens_and_offsets(
        self, text: str, spans: list[_Span], add_special_tokens: bool
    ) -> tuple[IdArray, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Token ids, and the first and last character of each token."""
        fast = bool(self._tokenizer.is_fast)
        encoded = self._tokenizer(
            text, add_special_tokens=add_special_tokens, return_offsets_mapping=fast, verbose=False
        )
        ids = np.asarray(encoded["input_ids"], dtype=np.int32)
        if fast:
            offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
            return ids, offsets[:, 0], offsets[:, 1]
        return ids, *self._slow_offsets(text, ids, spans, add_special_tokens)

    def _slow_offsets(
        self, text: str, ids: IdArray, spans: list[_Span], add_special_tokens: bool
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Offsets that hold at the bounds of the spans, from the tokens of the text up to each bound.

        A token's characters run from the last bound at or before it to the first bound behind it. A tokenizer
        that joins blanks at the end of a text can count the template's last blank to the answer.
        """
        bounds = sorted({0, len(text)} | {edge for s in spans for edge in (s.start, s.content_end, s.end)})
        starts = np.zeros(len(ids), dtype=np.int64)
        ends = np.full(len(ids), len(text), dtype=np.int64)
        for bound in bounds[1:-1]:
            prefix = self._tokenizer(text[:bound], add_special_tokens=add_special_tokens, verbose=False)
            count = _common_length(prefix["input_ids"], ids.tolist())
            ends[:count] = np.minimum(ends[:count], bound)
            starts[count:] = np.maximum(starts[count:], bound)
        return starts, ends


def _common_length(left: Sequence[Any], right: Sequence[Any]) -> int:
    """How many items two sequences have in common at their beginning."""
    size = min(len(left), len(right))
    if left[:size] == right[:size]:  # the usual case, without a loop
        return size
    return next((i for i in range(size) if left[i] != right[i]), size)
