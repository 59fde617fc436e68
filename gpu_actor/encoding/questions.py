"""A question as token ids, in the base model's chat template or that of a job."""

from __future__ import annotations

from typing import Any

from gpu_actor.contract.errors import DataError
from gpu_actor.contract.questions import Conversation, Question, RawText, TokenIds
from gpu_actor.data.chat_template import ChatTemplate


def question_ids(
    tokenizer: Any, question: Question, system: str | None, chat_template: str | None, vocabulary: int
) -> list[int]:
    """Token ids of a question, ready for the answer to follow.

    Args:
        tokenizer: The base model's.
        question: What a user says, a whole conversation, or what is taken as it is.
        system: What the conversation begins with.
        chat_template: Of the job; None: the tokenizer's own. Without either what a user says is taken as it is.
        vocabulary: Tokens that the base model knows.

    Raises:
        DataError: The template refuses it, there is none for a conversation, or the base model does not know one of its
            tokens.
    """
    if isinstance(question, TokenIds):
        ids = list(question.ids)
    elif isinstance(question, RawText):
        ids = tokenizer(question.text, add_special_tokens=True)["input_ids"]
    else:
        ids = _said(tokenizer, question, system, ChatTemplate(tokenizer, chat_template))
    if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
        wrong = next(i for i in ids if not 0 <= i < vocabulary)
        raise DataError(f"the question has a token {wrong}, the base model knows 0 to {vocabulary - 1}")
    return ids


def _said(tokenizer: Any, question: str | Conversation, system: str | None, template: ChatTemplate) -> list[int]:
    """Token ids of what goes through a chat template."""
    said = [("user", question)] if isinstance(question, str) else [(m.role, m.content) for m in question.messages]
    if system is not None:
        said.insert(0, ("system", system))
    if template.source() is not None:
        messages = [{"role": role, "content": content} for role, content in said]
        text, marked = template.render(messages, None, add_generation_prompt=True), False
    elif isinstance(question, str) or [role for role, _ in said] == ["user"]:
        text, marked = "\n\n".join(content for _, content in said), True
    else:
        raise DataError(
            "neither the base model nor the job has a chat template for a conversation; send one user message, or the "
            "text as it is to be gone on with"
        )
    ids: list[int] = tokenizer(text, add_special_tokens=marked)["input_ids"]
    return ids
