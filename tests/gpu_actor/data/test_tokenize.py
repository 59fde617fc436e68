"""Which tokens carry loss, audited against masks of transformers from marked twins of the templates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from gpu_actor.contract.errors import DataError
from gpu_actor.data.records import Chat, Plain
from gpu_actor.data.tokenize import TextEncoder
from support.sample_tokenizers import (
    BARE,
    CHATML,
    CHATML_MARKED,
    LLAMA2,
    PHI3,
    TWINS,
    WithoutOffsets,
    byte_level_tokenizer,
)

CONVERSATIONS = {
    "one turn": ["user: What is the capital of France?", "assistant: Paris."],
    "spaces": ["user:  Hello  ", "assistant:  I am fine. "],
    "several turns": ["user: Hello", "assistant: Hello there", "user: How are you?", "assistant: I am fine"],
    "answer repeats the question": ["user: Paris", "assistant: Paris", "user: Paris", "assistant: Paris"],
    "not ASCII": ["user: Où est l'été ?", "assistant: 在这里 🙂🙂", "user: ñ", "assistant: é"],
    "own thoughts": ["user: Hello", "assistant: <think>\nhm\n</think>\n\nHello", "user: a", "assistant: b"],
    "answer like the stand-in": ["user: LorayStandIn", "assistant: LorayStandIn0 Loray"],
    "ends with a question": ["user: Hello", "assistant: Hello there", "user: How are you?"],
    "answer is the end marker": ["user: Hello", "assistant: <|im_end|>"],
}


def chat(*turns):
    messages = tuple(dict(zip(("role", "content"), turn.split(": ", 1), strict=True)) for turn in turns)
    return Chat(messages, tuple(i for i, m in enumerate(messages) if m["role"] == "assistant"))


def reference(tokenizer, marked, messages):
    """Ids and labels from the marked template, by transformers alone."""
    out = tokenizer.apply_chat_template(
        list(messages), chat_template=marked, return_assistant_tokens_mask=True, return_dict=True
    )
    ids, mask = np.array(out["input_ids"]), np.array(out["assistant_masks"], dtype=bool)
    return ids.tolist(), np.where(mask, ids, -100).tolist()


def learned_text(tokenizer, labels):
    return tokenizer.decode([token for token in labels if token != -100])


@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("name", TWINS)
def test_labels_are_those_of_the_marked_twin(name, turns):
    template, marked = TWINS[name]
    tokenizer = byte_level_tokenizer(template)
    sample = chat(*turns)

    ids, labels = TextEncoder(tokenizer, train_on_inputs=False).encode(sample)

    assert (ids.tolist(), labels.tolist()) == reference(tokenizer, marked, sample.messages)
    assert (labels != -100).any()


text = st.text(min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=150)
@given(st.lists(st.tuples(text, text), min_size=1, max_size=3), st.sampled_from(["chatml", "llama3", "phi3"]))
def test_labels_are_those_of_the_marked_twin_for_any_content(turns, name):
    template, marked = TWINS[name]
    tokenizer = TOKENIZERS.setdefault(name, byte_level_tokenizer(template))
    messages = [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]
    sample = Chat(tuple(messages), tuple(range(1, len(messages), 2)))
    ids, labels = TextEncoder(tokenizer, train_on_inputs=False).encode(sample)
    assert (ids.tolist(), labels.tolist()) == reference(tokenizer, marked, messages)


TOKENIZERS = {}


def test_learned_text_is_answers_with_their_ends():
    tokenizer = byte_level_tokenizer(CHATML)
    sample = chat("system: Be brief", "user: Hello", "assistant: Yes", "user: And?", "assistant: No")
    _, labels = TextEncoder(tokenizer, False).encode(sample)
    assert learned_text(tokenizer, labels) == "Yes<|im_end|>No<|im_end|>"


def test_think_block_that_the_model_must_write_is_learned():
    tokenizer = byte_level_tokenizer(TWINS["qwen3"][0])
    _, labels = TextEncoder(tokenizer, False).encode(chat("user: a", "assistant: b", "user: c", "assistant: d"))
    assert learned_text(tokenizer, labels) == "b<|im_end|><think>\n\n</think>\n\nd<|im_end|>"


def test_only_the_wanted_turns_are_learned():
    tokenizer = byte_level_tokenizer(CHATML)
    sample = chat("user: a", "assistant: b", "user: c", "assistant: d")
    _, labels = TextEncoder(tokenizer, False).encode(Chat(sample.messages, (3,)))
    assert learned_text(tokenizer, labels) == "d<|im_end|>"


def test_conversation_that_starts_with_the_assistant():
    tokenizer = byte_level_tokenizer(CHATML)
    _, labels = TextEncoder(tokenizer, False).encode(chat("assistant: Hello", "user: a"))
    assert learned_text(tokenizer, labels) == "Hello<|im_end|>"


def test_template_without_an_end_token_gets_the_end_of_text_token():
    tokenizer = byte_level_tokenizer(BARE)
    ids, labels = TextEncoder(tokenizer, False).encode(chat("user: a", "assistant: b", "user: c", "assistant: d"))
    assert tokenizer.decode(ids) == "user: a\nassistant: b\nuser: c\nassistant: d\n</s>"
    assert learned_text(tokenizer, labels) == "b\nd\n</s>"


def test_template_with_an_end_token_gets_no_other():
    for name in TWINS:
        tokenizer = byte_level_tokenizer(TWINS[name][0])
        ids, _ = TextEncoder(tokenizer, False).encode(chat("user: a", "assistant: b"))
        assert ids.tolist().count(tokenizer.eos_token_id) == (1 if name in ("llama2", "phi3") else 0), name


def test_generation_prompt_that_opens_a_thought_is_no_part_of_a_finished_turn():
    template = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
    tokenizer = byte_level_tokenizer(template)
    _, labels = TextEncoder(tokenizer, False).encode(chat("user: a", "assistant: b"))
    assert learned_text(tokenizer, labels) == "b<|im_end|>"


def test_template_without_generation_prompt_does_not_teach_the_role():
    tokenizer = byte_level_tokenizer(CHATML.split("{% if add_generation")[0])
    _, labels = TextEncoder(tokenizer, False).encode(chat("user: a", "assistant: b"))
    assert learned_text(tokenizer, labels) == "b<|im_end|>"


# Not llama3: the blank line before its answers is one token at the end of a text, and two before a word.
@pytest.mark.parametrize("name", ["chatml", "llama2", "qwen3", "phi3"])
def test_a_tokenizer_without_offsets_labels_the_same(name):
    template = TWINS[name][0]
    fast = TextEncoder(byte_level_tokenizer(template), False)
    slow = TextEncoder(byte_level_tokenizer(template, cls=WithoutOffsets), False)
    for turns in (CONVERSATIONS["one turn"], CONVERSATIONS["several turns"], CONVERSATIONS["not ASCII"]):
        for left, right in zip(fast.encode(chat(*turns)), slow.encode(chat(*turns)), strict=True):
            assert left.tolist() == right.tolist()


def test_a_python_tokenizer_labels_the_answer_bytes():
    tokenizer = ByT5Tokenizer()  # bytes as tokens, no files, no offsets, adds its own </s>
    tokenizer.chat_template = CHATML
    encoder = TextEncoder(tokenizer, False)
    _, labels = encoder.encode(chat("user: a", "assistant: bé", "user: c", "assistant: d"))
    assert learned_text(tokenizer, labels) == "bé<|im_end|>d<|im_end|>"
    ids, labels = encoder.encode(Plain("a: ", "bé"))
    assert (tokenizer.decode(ids), learned_text(tokenizer, labels)) == ("a: bé</s>", "bé</s>")


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("eos", ["</s>", None])
def test_plain_answer_and_end_are_learned(adds_bos, eos):
    tokenizer = byte_level_tokenizer(eos=eos, adds_bos=adds_bos)
    ids, labels = TextEncoder(tokenizer, False).encode(Plain("The capital of Italy is", " Rome."))
    end = eos or ""
    assert tokenizer.decode(ids) == ("<s>" if adds_bos else "") + "The capital of Italy is Rome." + end
    assert learned_text(tokenizer, labels) == " Rome." + end


def test_plain_text_that_ends_with_the_end_token_is_not_closed_twice():
    tokenizer = byte_level_tokenizer()
    ids, labels = TextEncoder(tokenizer, False).encode(Plain("a", "b</s>"))
    assert tokenizer.decode(ids) == "ab</s>"
    assert learned_text(tokenizer, labels) == "b</s>"


def test_text_is_learned_whole():
    tokenizer = byte_level_tokenizer(adds_bos=True)
    ids, labels = TextEncoder(tokenizer, False).encode(Plain("", "Paris is a capital."))
    assert labels.tolist() == ids.tolist()
    assert tokenizer.decode(ids) == "<s>Paris is a capital.</s>"


def test_token_across_the_bound_belongs_to_the_answer():
    tokenizer = byte_level_tokenizer()
    (joined,) = tokenizer("is", add_special_tokens=False)["input_ids"]
    _, labels = TextEncoder(tokenizer, False).encode(Plain("i", "s"))
    assert labels.tolist() == [joined, tokenizer.eos_token_id]


@pytest.mark.parametrize("answer", ["b        c", "  b", "b  "])
def test_space_tokens_without_characters_of_their_own_are_learned(answer):
    # With trimmed offsets a token of spaces covers no character.
    encoder = TextEncoder(tokenizer := byte_level_tokenizer(CHATML, trim_offsets=True), False)
    _, labels = encoder.encode(chat("user: a", f"assistant: {answer}"))
    assert learned_text(tokenizer, labels) == f"{answer}<|im_end|>"
    _, labels = encoder.encode(Plain("a", answer))
    assert learned_text(tokenizer, labels) == f"{answer}</s>"


def test_next_marker_that_begins_like_the_end_is_not_learned():
    tokenizer = byte_level_tokenizer(PHI3.replace("<|end|>\n", "<|end|>"))
    _, labels = TextEncoder(tokenizer, False).encode(chat(*CONVERSATIONS["several turns"]))
    assert learned_text(tokenizer, labels) == "Hello there<|end|>I am fine<|end|></s>"


@pytest.mark.parametrize("sample", [Plain("a", "b"), chat("user: a", "assistant: b")], ids=["plain", "chat"])
def test_train_on_inputs_learns_every_token(sample):
    ids, labels = TextEncoder(byte_level_tokenizer(CHATML), train_on_inputs=True).encode(sample)
    assert labels.tolist() == ids.tolist()


def test_without_a_template_the_fallback_is_used():
    tokenizer = byte_level_tokenizer()
    sample = chat("user: a", "assistant: b")
    ids, _ = TextEncoder(tokenizer, False).encode(Chat(sample.messages, (1,), Plain("### a\n", "b")))
    assert tokenizer.decode(ids) == "### a\nb</s>"


def test_without_template_or_fallback_the_error_says_what_to_do():
    with pytest.raises(
        DataError,
        match=r"no chat template; use a chat model, give dataset\.chat_template, or give",
    ):
        TextEncoder(byte_level_tokenizer(), False).encode(chat("user: a", "assistant: b"))


def test_named_templates_without_a_default_count_as_none():
    tokenizer = byte_level_tokenizer({"tool_use": CHATML})
    with pytest.raises(DataError, match="no chat template"):
        TextEncoder(tokenizer, False).encode(chat("user: a", "assistant: b"))


def test_default_of_several_templates_is_used():
    tokenizer = byte_level_tokenizer({"default": CHATML, "tool_use": LLAMA2})
    ids, _ = TextEncoder(tokenizer, False).encode(chat("user: a", "assistant: b"))
    assert tokenizer.decode(ids).startswith("<|im_start|>user\na")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (LLAMA2, r"refuses the conversation: only user and assistant roles are supported"),
        ("{{ messages[9].content.x }}", r"refuses the conversation: list object has no element 9"),
        ("{% if %}", r"refuses the conversation: Expected an expression"),
        (
            "{{ messages.__class__.__mro__[1].__subclasses__() }}",
            r"refuses the conversation: access to attribute",
        ),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", r"message 2 .* 2 times"),
        ("nothing of the messages", r"content of message 2 \(role assistant\) 0 times"),
        (
            "{% for m in messages %}{{ m.content }}{{ '!' if m.content == 'b' else '?' }}{% endfor %}",
            r"does not write message 2 in one piece; check the chat template, or give the samples",
        ),
    ],
)
def test_a_template_that_cannot_be_used_is_reported(template, message):
    sample = chat("system: x", "user: a", "assistant: b")
    with pytest.raises(DataError, match=message):
        TextEncoder(byte_level_tokenizer(template), False).encode(sample)


def test_marked_template_works_as_well():
    tokenizer = byte_level_tokenizer(CHATML_MARKED)
    _, labels = TextEncoder(tokenizer, False).encode(chat("user: a", "assistant: b"))
    assert learned_text(tokenizer, labels) == "b<|im_end|>"
