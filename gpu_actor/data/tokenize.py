"""Text and conversations to token ids and labels: which tokens carry loss, and the end of an answer.

A conversation is rendered by its chat template and tokenised once as a whole. `turns.py` says which of its
characters are learned; a token across the start of an answer belongs to the answer.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from gpu_actor.contract.errors import DataError
from gpu_actor.contract.messages import shorten
from gpu_actor.data.chat_template import ChatTemplate
from gpu_actor.data.records import IGNORE_INDEX, Chat, Plain
from gpu_actor.data.samples import IdArray, Labelled
from gpu_actor.data.turns import Conversation, Span, common_length, marked_spans


class TextEncoder:
    """Turns texts and conversations into token ids and labels with one tokenizer.

    Attributes:
        shortened: Samples so far in which the chat template left out a part of an answer: thoughts of an earlier turn.
    """

    def __init__(self, tokenizer: Any, train_on_inputs: bool, chat_template: str | None = None) -> None:
        """Keep the tokenizer and find the chat template.

        Args:
            tokenizer: A tokenizer of transformers, fast or slow.
            train_on_inputs: Take loss on every token.
            chat_template: Takes the place of the tokenizer's own template: text, or the path of a .jinja file.

        Raises:
            UnfitDataError: The template's file cannot be read.
        """
        self._tokenizer = tokenizer
        self._train_on_inputs = train_on_inputs
        self._eos = tokenizer.eos_token_id
        self._template = ChatTemplate(tokenizer, chat_template)
        self.shortened = 0
        self._special = _special_tokens(tokenizer)

    def encode(self, sample: Plain | Chat) -> Labelled:
        """Token ids and unshifted labels of one sample, -100 where no loss is taken.

        Raises:
            DataError: There is no chat template, or it cannot render the sample.
        """
        if isinstance(sample, Chat):
            source = self._template.source(sample.tools)
            if source is not None:
                return self._encode_chat(sample, source)
            if sample.fallback is None:
                raise DataError(
                    "the base model's tokenizer has no chat template; use a chat model, give dataset.chat_template, "
                    "or give the samples as strings in the format prompt_completion or text"
                )
            sample = sample.fallback
        return self._encode_plain(sample)

    def _encode_plain(self, sample: Plain) -> Labelled:
        text = sample.prompt + sample.answer
        span = Span(len(sample.prompt), len(text), len(text))
        # Whole-text loss takes in what the tokenizer adds by itself, such as a start token.
        whole = not sample.prompt
        return self._tokenise(text, [span], add_special_tokens=True, learn_all=whole, close=True)

    def _encode_chat(self, sample: Chat, source: str) -> Labelled:
        if sample.tools and "tools" not in source:
            raise DataError("tools: the chat template writes no tools; remove them, or give dataset.chat_template")
        if self._train_on_inputs and any(message.get("weight") == 0 for message in sample.messages):
            raise DataError(
                "weight: training.train_on_inputs is true, but a message has the weight 0; remove one of the two"
            )
        content_end = None
        if self._template.has_marks(sample.tools):
            text, marks = self._template.render_marked(sample.messages, sample.tools)
            conversation = self._conversation(sample, source, text)
            spans = marked_spans(conversation, sample.learned, marks)
        else:
            conversation = self._conversation(sample, source)
            spans = [span for index in sample.learned for span in conversation.find_turn(index)]
            content_end = spans[-1].content_end
        self._check_written(sample, conversation.text, spans)
        # A template that writes nothing behind the last answer would never teach the model to stop.
        close = sample.learned[-1] == len(sample.messages) - 1 and conversation.leaves_open(content_end)
        return self._tokenise(conversation.text, spans, add_special_tokens=False, learn_all=False, close=close)

    def _conversation(self, sample: Chat, source: str, text: str | None = None) -> Conversation:
        return Conversation(
            sample.messages,
            lambda messages, prompt: self._template.render(messages, sample.tools, prompt),
            has_generation_prompt="add_generation_prompt" in source,
            special=self._special,
            text=text,
        )

    def _check_written(self, sample: Chat, text: str, spans: list[Span]) -> None:
        """Refuse thoughts and calls that the template never writes; count samples whose answers it shortens.

        Templates leave out the thoughts of earlier turns, as they do when the model is asked.
        """
        reasoning = [message["reasoning_content"] for message in sample.messages if "reasoning_content" in message]
        if reasoning and not any(thought.strip() in text for thought in reasoning):
            raise DataError(
                "reasoning_content: the chat template writes none; remove it, or give dataset.chat_template"
            )
        learned = "".join(text[span.start : span.end] for span in spans)
        turns = [sample.messages[index] for index in sample.learned]
        names = [call["function"]["name"] for turn in turns for call in turn.get("tool_calls", ())]
        for name in dict.fromkeys(names):
            if learned.count(name) < names.count(name):
                raise DataError(
                    f"tool_calls: the chat template writes {learned.count(name)} of {names.count(name)} calls of "
                    f"{shorten(name)} where they would be learned; remove them, or give dataset.chat_template"
                )
        parts = [turn.get(field, "").strip() for turn in turns for field in ("reasoning_content", "content")]
        self.shortened += any(part not in learned for part in parts)

    def _tokenise(
        self, text: str, spans: list[Span], *, add_special_tokens: bool, learn_all: bool, close: bool
    ) -> Labelled:
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
            positions = np.flatnonzero(learned)
            learned[positions[-1] if len(positions) else -1 :] = True
        if self._train_on_inputs:
            return ids, ids
        return ids, np.where(learned, ids, np.int32(IGNORE_INDEX))

    def _tokens_and_offsets(
        self, text: str, spans: list[Span], add_special_tokens: bool
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
        self, text: str, ids: IdArray, spans: list[Span], add_special_tokens: bool
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
            count = common_length(prefix["input_ids"], ids.tolist())
            ends[:count] = np.minimum(ends[:count], bound)
            starts[count:] = np.maximum(starts[count:], bound)
        return starts, ends


def _special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Matches the tokens by which a turn may end: special ones, and not the one that begins a text."""
    names = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    ending = sorted({name for name in names if name.strip() and name != tokenizer.bos_token}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ending)) or "(?!)")
