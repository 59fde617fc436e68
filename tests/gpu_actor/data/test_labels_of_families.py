"""What is learned of conversations of any shape, with the chat templates of model families that TRL ships.

TRL has a twin of each template that marks, with `{% generation %}`, what its SFTTrainer learns (`assistant_only_loss`).
"""

import re
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import _compile_jinja_template

from gpu_actor.contract.errors import DataError
from gpu_actor.data.chat_template import _DAY
from gpu_actor.data.formats import read_sample
from gpu_actor.data.tokenize import TextEncoder
from support.sample_files import load, write

FOLDER = Path(find_spec("trl").origin).parent / "chat_templates"
FAMILIES = sorted(path.name.removesuffix("_training.jinja") for path in FOLDER.glob("*_training.jinja"))
SPECIAL = re.compile(r"<[|\uff5c][^<>{}'\" ]+?[|\uff5c]>|<[a-z_]+\|>|<\|[a-z_]+>|<(?:start|end)_of_[a-z]+>")

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "description": "where"}}}
FUNCTION = {"name": "weather", "description": "tells the sky", "parameters": PARAMETERS | {"required": ["city"]}}
TOOLS = [{"type": "function", "function": FUNCTION}]


def user(content):
    return {"role": "user", "content": content}


def answer(content, *cities, **fields):
    calls = [{"type": "function", "function": {"name": "weather", "arguments": {"city": city}}} for city in cities]
    return {"role": "assistant", "content": content, **({"tool_calls": calls} if calls else {}), **fields}


def tool(content):
    return {"role": "tool", "name": "weather", "content": content}


BLUE = [user("Color?"), answer("It is blue.")]
THOUGHT = [user("2+2?"), answer("Four.", reasoning_content="two and two")]
SHAPES = {
    "single turn": BLUE,
    "system": [{"role": "system", "content": "You are brief."}, *BLUE],
    "several turns": [*BLUE, user("Night?"), answer("Black.")],
    "tools unused": BLUE,
    "a tool call": [user("Paris?"), answer("", "Paris"), tool("rain"), answer("Wet.")],
    "two tool calls": [user("Both?"), answer("", "Paris", "Rome"), tool("rain"), tool("sun"), answer("Mixed.")],
    "tool call with content": [user("Paris?"), answer("Let me look.", "Paris"), tool("rain"), answer("Wet.")],
    "tool call last": [user("Paris?"), answer("", "Paris")],
    "thought": THOUGHT,
    "empty thought": [user("2+2?"), answer("<think>\n\n</think>\n\nFour.")],
    "thought in the content": [user("2+2?"), answer("<think>\nadd\n</think>\n\nFour.")],
    "earlier thoughts": [*THOUGHT, user("3+3?"), answer("Six.", reasoning_content="three and three")],
    "thoughts and a tool call": [
        user("Paris?"),
        answer("", "Paris", reasoning_content="must look"),
        tool("rain"),
        answer("Wet.", reasoning_content="so it is"),
    ],
    "blanks": [user("Color?"), answer("  It is blue. \n"), user("Night?"), answer("\n Black. ")],
    "question last": [*BLUE, user("Night?")],
    "two answers": [*BLUE, answer("And green.")],
}

# TRL's twins that write another text than the template: a thought in every turn, GLM's stop token behind the last one.
OTHER_TEXT = {"deepseek_r1_distill", "glm4moe", "qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6"}


@cache
def template(name):
    text = (FOLDER / f"{name}.jinja").read_text()
    _compile_jinja_template(text).globals["strftime_now"] = _DAY.strftime
    return text


@cache
def encoder(family, marked):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = template(f"{family}_training" if marked else family)
    fast.add_tokens(sorted(set(SPECIAL.findall(template(family)))), special_tokens=True)
    return fast, TextEncoder(fast, train_on_inputs=False)


def sample_of(shape):
    tools = TOOLS if "tool" in shape else None
    return read_sample({"messages": SHAPES[shape], "tools": tools}, "messages", 1000)


@cache
def labels_of_trl(family, shape):
    """Ids, and what of them TRL's trainer learns; None where its template refuses the conversation."""
    sample, (tokenizer, _) = sample_of(shape), encoder(family, marked=False)
    try:
        out = tokenizer.apply_chat_template(
            list(sample.messages),
            tools=sample.tools and list(sample.tools),
            chat_template=template(f"{family}_training"),
            return_assistant_tokens_mask=True,
            return_dict=True,
        )
    except Exception:  # a template raises what it likes
        return None
    return np.array(out["input_ids"]), np.array(out["assistant_masks"], dtype=bool)


def runs(tokenizer, ids, learned):
    """The texts that are learned in one go."""
    groups = groupby(zip(ids, learned, strict=True), lambda pair: pair[1])
    return [tokenizer.decode([token for token, _ in group]) for on, group in groups if on]


def check_refusal(family, shape, error):
    """A conversation is refused where TRL loses something of it without a word, or refuses it as well."""
    expected, (tokenizer, _) = labels_of_trl(family, shape), encoder(family, marked=False)
    if expected is None:
        return
    text, wanted = tokenizer.decode(expected[0]), "".join(runs(tokenizer, *expected))
    sample = sample_of(shape)
    turns = [message for message in sample.messages if message["role"] == "assistant"]
    calls = [call["function"]["arguments"]["city"] for turn in turns for call in turn.get("tool_calls", ())]
    said = [turn.get(field, "").strip() for turn in turns for field in ("content", "reasoning_content")]
    lost = [part for part in [*said, *calls] if part not in wanted]
    assert lost or (sample.tools and "tells the sky" not in text), str(error)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_marks_of_a_template_say_what_is_learned(family, shape):
    tokenizer, text_encoder = encoder(family, marked=True)
    try:
        ids, labels = text_encoder.encode(sample_of(shape))
    except DataError as error:
        check_refusal(family, shape, error)
        return
    expected, learned = labels_of_trl(family, shape)
    assert ids.tolist() == expected.tolist()
    assert runs(tokenizer, ids, labels != -100) == runs(tokenizer, ids, learned)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_learned_without_marks_is_what_trl_learns(family, shape):
    tokenizer, text_encoder = encoder(family, marked=False)
    sample = sample_of(shape)
    try:
        ids, labels = text_encoder.encode(sample)
    except DataError as error:
        check_refusal(family, shape, error)
        return
    ours = labels != -100
    expected, theirs = labels_of_trl(family, shape)
    prompt = text_encoder._template.render(sample.messages[: sample.learned[0]], sample.tools, True)
    if ids.tolist() != expected.tolist():
        assert family in OTHER_TEXT
        if family == "glm4moe" and shape != "two answers":  # every turn is closed by what the model stops at
            assert all(re.search(r"(<\|(user|observation)\|>|</s>)$", run) for run in runs(tokenizer, ids, ours))
        pairs = list(zip(runs(tokenizer, ids, ours), runs(tokenizer, expected, theirs), strict=True))
        for mine, other in pairs:
            mine, other = mine.removesuffix("</s>").rstrip(), re.sub(r"(<\|(user|observation)\|>)?\s*$", "", other)
            mine = re.sub(r"<\|(user|observation)\|>$", "", mine)
            assert other.endswith(mine.lstrip())
            more = other.removesuffix(mine.lstrip())
            assert not more or more.strip() in prompt or re.search(r"<think>.*</think>\s*$", more, re.DOTALL)
        return
    # TRL also learns what the generation prompt writes for the model, and blanks behind a turn.
    for more in runs(tokenizer, ids, theirs & ~ours):
        assert more.strip() in prompt, more
    # What the model hands over to a tool with, it has to write.
    assert set(runs(tokenizer, ids, ours & ~theirs)) <= {"<|tool_response>"}


def test_thoughts_that_the_template_leaves_out_are_counted(tmp_path):
    tokenizer = encoder("qwen3_5_think", marked=False)[0]
    text_encoder = TextEncoder(tokenizer, train_on_inputs=False)
    text_encoder.encode(sample_of("thought"))
    assert text_encoder.shortened == 0
    sample = sample_of("earlier thoughts")
    text_encoder.encode(sample)
    assert text_encoder.shortened == 1
    path = write(tmp_path, *[{"messages": sample.messages}] * 2)
    assert load(path, lambda: tokenizer, vocab_size=len(tokenizer)).shortened == 2  # which the job's reports carry


@pytest.mark.parametrize(("learned", "expected"), [((1,), ["It is blue.<|im_end|>\n"]), ((3,), ["Black.<|im_end|>\n"])])
def test_marks_of_answers_that_are_not_learned_count_for_nothing(learned, expected):
    tokenizer, text_encoder = encoder("lfm2", marked=True)
    ids, labels = text_encoder.encode(replace(sample_of("several turns"), learned=learned))
    assert runs(tokenizer, ids, labels != -100) == expected
