"""Token ids and labels are those of TRL's own trainers, on the formats and examples of TRL's documentation."""

import json
import tempfile
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import trl
from datasets import Dataset

from gpu_actor.contract.config import DatasetConfig, TrainingConfig
from gpu_actor.data.dataset import load_dataset
from gpu_actor.data.formats import read_sample
from gpu_actor.data.tokenize import TextEncoder
from support.sample_tokenizers import CHATML, TWINS, byte_level_tokenizer
from support.tiny import tiny_model

# With one line end and not two: our tokenizer merges two at the end of a text only, where TRL's way to find the
# end of a prompt (the common tokens of prompt and whole) puts the line ends into the answer, and says so.
TEMPLATES = {
    "llama3": TWINS["llama3"][0].replace("\n\n", "\n"),
    "chatml": CHATML,
}
SKY = [{"role": "user", "content": "What color is the sky?"}, {"role": "assistant", "content": "It is blue."}]
LONG = [
    {"role": "system", "content": "You are brief."},
    *SKY,
    {"role": "user", "content": "And at night?"},
    {"role": "assistant", "content": "Black, with stars."},
]
QUESTION = [{"role": "user", "content": "What color is the sky?"}]


def answer(text):
    return [{"role": "assistant", "content": text}]


@pytest.fixture(scope="module")
def model():
    return tiny_model(vocab_size=512)


def ours(tmp_path, tokenizer, rows, objective="sft", **dataset):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DatasetConfig(path=str(path), **dataset)
    return load_dataset(config, TrainingConfig(objective=objective), lambda: tokenizer, len(tokenizer)).train


def sft_rows(model, tokenizer, rows, **options):
    """Ids and labels of TRL's SFTTrainer, sample by sample."""
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        output_dir=tempfile.gettempdir(), report_to=[], use_cpu=True, bf16=False, max_length=None, **options
    )
    trainer = SFTTrainer(model, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    batches = [trainer.data_collator([row]) for row in trainer.train_dataset]
    return [(batch["input_ids"][0].tolist(), batch["labels"][0].tolist()) for batch in batches]


def dpo_rows(model, tokenizer, rows):
    """Ids and labels of both sides of each pair, by TRL's DPOTrainer."""
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(output_dir=tempfile.gettempdir(), report_to=[], use_cpu=True, bf16=False, max_length=None)
    reference = tiny_model(vocab_size=512)
    trainer = DPOTrainer(
        model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        ref_model=reference,
    )
    pairs = []
    for row in trainer.train_dataset:
        batch = trainer.data_collator([row])
        lengths = batch["attention_mask"].sum(1).tolist()
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        pairs.append([(batch["input_ids"][i, :n].tolist(), labels[i, :n].tolist()) for i, n in enumerate(lengths)])
    return pairs


def lists(samples):
    return [tuple(part.tolist() for part in samples[i]) for i in range(len(samples))]


def pair_lists(pairs):
    return [[tuple(part.tolist() for part in side) for side in pairs[i]] for i in range(len(pairs))]


def without_the_last_line_end(rows, tokenizer):
    """TRL takes loss on the newline that ChatML writes behind the last turn; Loray leaves it to the template."""
    (newline,) = tokenizer("\n", add_special_tokens=False)["input_ids"]
    for ids, labels in rows:
        assert ids[-1] == labels[-1] == newline
    return [(ids, [*labels[:-1], -100]) for ids, labels in rows]


def test_text(tmp_path, model):
    tokenizer = byte_level_tokenizer()
    rows = [{"text": "The sky is blue."}, {"text": "Hello there</s>"}]
    assert lists(ours(tmp_path, tokenizer, rows)) == sft_rows(model, tokenizer, rows)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_prompt_and_completion(tmp_path, model, adds_bos):
    tokenizer = byte_level_tokenizer(adds_bos=adds_bos)
    rows = [{"prompt": "The sky is", "completion": " blue."}, {"prompt": "The capital of Spain is", "completion": " M"}]
    assert lists(ours(tmp_path, tokenizer, rows)) == sft_rows(model, tokenizer, rows, completion_only_loss=True)


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompt_and_completion_as_messages(tmp_path, model, name):
    tokenizer = byte_level_tokenizer(TEMPLATES[name])
    rows = [
        {"prompt": QUESTION, "completion": answer("It is blue.")},
        {"prompt": [*SKY, *LONG[3:4]], "completion": LONG[4:]},
    ]
    expected = sft_rows(model, tokenizer, rows, completion_only_loss=True)
    if name == "chatml":
        expected = without_the_last_line_end(expected, tokenizer)
    assert lists(ours(tmp_path, tokenizer, rows)) == expected


@pytest.mark.parametrize("name", TWINS)
def test_every_assistant_turn_of_messages(tmp_path, model, name):
    template, marked = TWINS[name]
    rows = [{"messages": SKY}, {"messages": [*SKY, *LONG[3:]]}, {"messages": LONG}]
    rows = rows[:2] if name == "llama2" else rows
    # TRL learns what the marks say; Loray finds the same without them.
    expected = sft_rows(model, byte_level_tokenizer(marked), rows, assistant_only_loss=True)
    assert lists(ours(tmp_path, byte_level_tokenizer(template), rows)) == expected


def test_the_same_conversation_as_sharegpt_or_alpaca(tmp_path, model):
    tokenizer = byte_level_tokenizer(TWINS["chatml"][1])
    expected = sft_rows(model, tokenizer, [{"messages": LONG}], assistant_only_loss=True)
    tags = {"user": "human", "assistant": "gpt"}
    turns = [{"from": tags[m["role"]], "value": m["content"]} for m in LONG[1:]]
    sharegpt = [{"conversations": turns, "system": LONG[0]["content"]}]
    alpaca = {"system": LONG[0]["content"], "history": [[LONG[1]["content"], LONG[2]["content"]]]}
    alpaca |= {"instruction": LONG[3]["content"], "output": LONG[4]["content"]}
    assert lists(ours(tmp_path, tokenizer, sharegpt)) == expected
    assert lists(ours(tmp_path, tokenizer, [alpaca])) == expected


PAIRS = {
    "text": [{"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}],
    "text, implicit prompt": [{"chosen": "The sky is blue.", "rejected": "The sky is green."}],
    "messages": [{"prompt": QUESTION, "chosen": answer("It is blue."), "rejected": answer("It is green, I say.")}],
    "messages, implicit prompt": [
        {"chosen": [*QUESTION, *answer("It is blue.")], "rejected": [*QUESTION, *answer("It is green.")]},
        {"chosen": [*LONG[:4], *answer("Black.")], "rejected": [*LONG[:4], *answer("White.")]},
    ],
}


@pytest.mark.parametrize("name", ["llama3", "chatml"])
@pytest.mark.parametrize("layout", PAIRS)
def test_preference_pairs(tmp_path, model, layout, name):
    tokenizer = byte_level_tokenizer(TEMPLATES[name])
    expected = dpo_rows(model, tokenizer, PAIRS[layout])
    if name == "chatml" and "messages" in layout:
        expected = [without_the_last_line_end(pair, tokenizer) for pair in expected]
    assert pair_lists(ours(tmp_path, tokenizer, PAIRS[layout], "dpo")) == expected


def test_pairs_of_llama_factory_are_those_of_trl(tmp_path, model):
    tokenizer = byte_level_tokenizer(TEMPLATES["llama3"])
    expected = dpo_rows(model, tokenizer, PAIRS["messages"])
    question, chosen, rejected = QUESTION[0]["content"], "It is blue.", "It is green, I say."
    turns = {
        "conversations": [{"from": "human", "value": question}],
        "chosen": {"from": "gpt", "value": chosen},
        "rejected": {"from": "gpt", "value": rejected},
    }
    alpaca = {"instruction": question, "input": "", "chosen": chosen, "rejected": rejected}
    messages = {"messages": QUESTION, "chosen": answer(chosen)[0], "rejected": answer(rejected)[0]}
    for row in (turns, alpaca, messages):
        assert pair_lists(ours(tmp_path, tokenizer, [row], "orpo")) == expected


# --- tools ---

TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}GEN{{ m.content }}"
    "{% for c in m.tool_calls %}\n<call>{{ c.function | tojson }}</call>{% endfor %}<|im_end|>END\n"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL_PLAIN = TOOL_TEMPLATE.replace("GEN", "").replace("END", "")
TOOL_MARKED = TOOL_TEMPLATE.replace("GEN", "{% generation %}").replace("END\n", "{% endgeneration %}{{ '\\n' }}")
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
TOOL_TURNS = [
    {"role": "user", "content": "Weather in Paris?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "rain"},
    {"role": "assistant", "content": "It rains."},
]


@pytest.mark.parametrize("last", [2, 4])
def test_tool_turns(tmp_path, model, last):
    """Also where the last turn is a tool call."""
    rows = [{"messages": TOOL_TURNS[:last], "tools": TOOLS}]
    expected = sft_rows(model, byte_level_tokenizer(TOOL_MARKED), rows, assistant_only_loss=True)
    tokenizer = byte_level_tokenizer(TOOL_PLAIN)
    assert lists(ours(tmp_path, tokenizer, rows)) == expected
    learned = tokenizer.decode([label for label in expected[0][1] if label != -100])
    assert learned.startswith('<call>{"name": "weather", "arguments": {"city": "Paris"}}</call><|im_end|>')
    as_text = {"name": "weather", "arguments": json.dumps({"city": "Paris"})}
    openai = [
        {**m, "tool_calls": [{"type": "function", "function": as_text}]} if "tool_calls" in m else m
        for m in TOOL_TURNS[:last]
    ]
    assert lists(ours(tmp_path, tokenizer, [{"messages": openai, "tools": json.dumps(TOOLS)}])) == expected


def test_tool_turns_of_sharegpt(tmp_path, model):
    """LLaMA-Factory's tags and its tools, which are bare functions written as text."""
    expected = sft_rows(
        model, byte_level_tokenizer(TOOL_MARKED), [{"messages": TOOL_TURNS, "tools": TOOLS}], assistant_only_loss=True
    )
    turns = [
        {"from": "human", "value": "Weather in Paris?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Paris"}}'},
        {"from": "observation", "value": "rain"},
        {"from": "gpt", "value": "It rains."},
    ]
    row = {"conversations": turns, "tools": json.dumps([TOOLS[0]["function"]])}
    assert lists(ours(tmp_path, byte_level_tokenizer(TOOL_PLAIN), [row])) == expected


# The templates of model families that TRL ships, each with a twin of TRL's that marks what is learned.
FAMILIES = Path(trl.__file__).parent / "chat_templates"
WITH_TOOLS = ("lfm2_v2", "qwen2_5", "qwen3_instruct_2507", "qwen3_vl")
WITHOUT_TOOLS = ("cohere", "cohere2", "gemma", "gemma3", "lfm2", "llama3", "phi3", "phi3_5", "qwen2_5_vl")


def learned_runs(tokenizer, labels):
    """The texts that are learned in one go, without the blanks around them, which TRL counts to the turn or not."""
    runs = [list(group) for learned, group in groupby(labels, lambda label: label != -100) if learned]
    return [tokenizer.decode(run).strip() for run in runs]


@pytest.mark.parametrize(
    ("family", "turns"),
    [(family, turns) for family in [*WITH_TOOLS, *WITHOUT_TOOLS] for turns in ("one", "several")]
    + [(family, turns) for family in WITH_TOOLS for turns in ("tools", "tool call last")],
)
def test_turns_are_those_of_the_marked_templates_of_trl(family, turns):
    messages = {"one": SKY, "several": [*SKY, *LONG[3:]], "tools": TOOL_TURNS, "tool call last": TOOL_TURNS[:2]}[turns]
    tools = TOOLS if turns.startswith("tool") else None
    tokenizer = byte_level_tokenizer((FAMILIES / f"{family}.jinja").read_text())
    expected = tokenizer.apply_chat_template(
        messages,
        tools=tools,
        chat_template=(FAMILIES / f"{family}_training.jinja").read_text(),
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    masked = [i if m else -100 for i, m in zip(expected["input_ids"], expected["assistant_masks"], strict=True)]
    sample = read_sample({"messages": messages, "tools": tools}, "messages", len(tokenizer))
    ids, labels = TextEncoder(tokenizer, False).encode(sample)
    assert ids.tolist() == expected["input_ids"]
    assert learned_runs(tokenizer, labels.tolist()) == learned_runs(tokenizer, masked)


@pytest.mark.parametrize(
    ("family", "learned"),
    [
        # A template that writes nothing behind a tool call gets the end-of-text token.
        ("glm4moe", "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call></s>"),
        # Here the generation prompt opens a thought, so that only what the call itself writes is learned.
        ("nemotron_3_nano", "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n"),
        # Content would come behind the calls, and the tool's answer repeats the name.
        ("diffusion_gemma", '<|tool_call>call:weather{city:<|"|>Paris<|"|>}<tool_call|>'),
    ],
)
@pytest.mark.parametrize("last", [2, 4])
def test_tool_calls_of_templates_that_do_it_their_way(family, learned, last):
    tokenizer = byte_level_tokenizer((FAMILIES / f"{family}.jinja").read_text())
    sample = read_sample({"messages": TOOL_TURNS[:last], "tools": TOOLS}, "messages", len(tokenizer))
    _, labels = TextEncoder(tokenizer, False).encode(sample)
    text = tokenizer.decode([label for label in labels if label != -100])
    assert (learned if last == 2 else learned.removesuffix("</s>")) in text
    assert text.count("weather") == 1  # neither the definition nor the answer of the tool
    assert "rain" not in text.replace("It rains.", "")


def test_the_template_of_the_job_replaces_that_of_the_tokenizer(tmp_path):
    own, other = byte_level_tokenizer(CHATML), byte_level_tokenizer(TWINS["llama3"][0])
    rows = [{"messages": LONG}]
    expected = lists(ours(tmp_path, own, rows))
    file = tmp_path / "chat.jinja"
    file.write_text(CHATML)
    for template in (CHATML, str(file)):
        assert lists(ours(tmp_path, other, rows, chat_template=template)) == expected
        assert lists(ours(tmp_path, byte_level_tokenizer(), rows, chat_template=template)) == expected
    assert np.concatenate([ids for ids, _ in expected]).tolist() != lists(ours(tmp_path, other, rows))[0][0]
