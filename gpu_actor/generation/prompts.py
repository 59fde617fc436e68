"""A question as token ids, in the base model's chat template; which tokens end its answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpu_actor.batch.shared_batch import Tokens
from gpu_actor.contract.questions import Conversation, Question, RawText, TokenIds
from gpu_actor.encoding.questions import question_ids
from gpu_actor.model.base_model import BaseModel

Prompts = Callable[[int, str | None], Tokens]
"""Gives the token ids of a question, by its number, in a chat template; raises DataError where there are none."""


def prompt_of(
    tokenizer: Any, question: Question, system: str | None, chat_template: str | None, vocabulary: int
) -> Tokens:
    """Token ids [n] of a question, int32; see `question_ids`.

    Raises:
        DataError: As there.
    """
    return np.array(question_ids(tokenizer, question, system, chat_template, vocabulary), dtype=np.int32)


def shown(question: Question) -> str:
    """A question for people: what was said, or last said."""
    match question:
        case Conversation(messages=messages):
            return messages[-1].content
        case RawText(text=text):
            return text
        case TokenIds():
            return ""
    return question


def end_tokens(base: BaseModel, tokenizer: Any) -> set[int]:
    """Token ids that end an answer."""
    configured = base.model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return {int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None}
