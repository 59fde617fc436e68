"""A question as token ids, in the base model's chat template; which tokens end its answer."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpu_actor.batch.shared_batch import Tokens
from gpu_actor.contract.errors import DataError
from gpu_actor.data.chat_template import ChatTemplate
from gpu_actor.model.base_model import BaseModel


def prompt_of(tokenizer: Any, question: str, system: str | None, chat_template: str | None, vocabulary: int) -> Tokens:
    """Token ids [n] of a question, ready for the answer to follow.

    Args:
        tokenizer: The base model's.
        question: What a user says.
        system: What the conversation begins with.
        chat_template: Of the job; None: the tokenizer's own. Without either the text is taken as it is.
        vocabulary: Tokens that the base model knows.

    Raises:
        DataError: The template refuses it, or the base model does not know one of its tokens.
    """
    template = ChatTemplate(tokenizer, chat_template)
    if template.source() is None:
        text, marked = question if system is None else f"{system}\n\n{question}", True
    else:
        messages = [{"role": "user", "content": question}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        text, marked = template.render(messages, None, add_generation_prompt=True), False
    ids = np.array(tokenizer(text, add_special_tokens=marked)["input_ids"], dtype=np.int32)
    if len(ids) and ids.max() >= vocabulary:
        raise DataError(f"the question has a token {ids.max()}, the base model knows {vocabulary}")
    return ids


def end_tokens(base: BaseModel, tokenizer: Any) -> set[int]:
    """Token ids that end an answer."""
    configured = base.model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return {int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None}
