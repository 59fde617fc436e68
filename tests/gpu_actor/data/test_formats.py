import pytest

from gpu_actor.contract.errors import DataError
from gpu_actor.data.format_columns import detect_format
from gpu_actor.data.formats import read_sample
from gpu_actor.data.records import Chat, Plain, Tokens

VOCAB = 100


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"instruction": "a", "output": "b"}, "alpaca"),
        (
            {"instruction": "a", "input": "", "output": "b", "text": "the original Alpaca has this too"},
            "alpaca",
        ),
        ({"messages": []}, "messages"),
        ({"prompt": "a", "prompt_id": "7", "messages": []}, "messages"),
        ({"prompt": "a", "completion": "b"}, "prompt_completion"),
        ({"text": "a", "id": 3}, "text"),
        ({"input_ids": [1], "labels": [1]}, "tokens"),
    ],
)
def test_format_is_known_by_the_fields(record, expected):
    assert detect_format(record) == expected


def test_unknown_fields_are_listed_with_the_formats():
    with pytest.raises(DataError, match=r"'question', 'answer'.*alpaca: instruction, output.*text: text"):
        detect_format({"question": "a", "answer": "b"})


@pytest.mark.parametrize("extra", [{}, {"input": ""}, {"input": None}, {"input": " \n"}, {"id": 7, "system": ""}])
def test_alpaca_without_input(extra):
    sample = read_sample({"instruction": "Say hi", "output": "Hi", **extra}, "alpaca", VOCAB)
    assert sample == Chat(
        (user("Say hi"), assistant("Hi")),
        (1,),
        Plain(
            "Below is an instruction that describes a task. Write a response that appropriately completes "
            "the request.\n\n### Instruction:\nSay hi\n\n### Response:\n",
            "Hi",
        ),
    )


def test_alpaca_with_input():
    sample = read_sample({"instruction": "Translate", "input": "oui", "output": "yes"}, "alpaca", VOCAB)
    assert sample.messages == (user("Translate\noui"), assistant("yes"))
    assert sample.fallback.prompt.endswith("### Instruction:\nTranslate\n\n### Input:\noui\n\n### Response:\n")
    assert "paired with an input" in sample.fallback.prompt


def test_messages_learn_every_assistant_turn():
    turns = [{"role": "system", "content": "s"}, user("a"), assistant("b"), user("c"), assistant("d")]
    assert read_sample({"messages": turns}, "messages", VOCAB) == Chat(tuple(turns), (2, 4))


def test_empty_extras_of_exported_messages_are_allowed():
    turns = [{**user("a"), "name": None}, {**assistant("b"), "tool_calls": None}]
    assert read_sample({"messages": turns}, "messages", VOCAB).messages == (user("a"), assistant("b"))


def test_prompt_completion_strings_stay_as_they_are():
    assert read_sample({"prompt": " a ", "completion": " b"}, "prompt_completion", VOCAB) == Plain(" a ", " b")


def test_prompt_completion_messages_learn_the_completion_alone():
    record = {"prompt": [user("a"), assistant("b"), user("c")], "completion": [assistant("d")]}
    sample = read_sample(record, "prompt_completion", VOCAB)
    assert sample == Chat((user("a"), assistant("b"), user("c"), assistant("d")), (3,))


def test_text_and_tokens():
    assert read_sample({"text": "a b"}, "text", VOCAB) == Plain("", "a b")
    assert read_sample({"input_ids": [0, 99]}, "tokens", VOCAB) == Tokens([0, 99], None)
    assert read_sample({"input_ids": [0, 99], "labels": None}, "tokens", VOCAB) == Tokens([0, 99], None)
    assert read_sample({"input_ids": [0, 1], "labels": [-100, 9]}, "tokens", VOCAB) == Tokens([0, 1], [-100, 9])


@pytest.mark.parametrize(
    ("data_format", "record", "message"),
    [
        (
            "alpaca",
            {"instruction": "a"},
            r"output: missing; .* needs instruction and output, this one has \['instr",
        ),
        ("alpaca", {"instruction": "a", "ouput": "b"}, r"output: missing; .* did you mean it by 'ouput'\?"),
        (
            "alpaca",
            {"instruction": "", "output": "b"},
            r"instruction: is empty \(''\); give some text or remove",
        ),
        ("alpaca", {"instruction": "a", "output": " \n"}, r"output: is empty \(' \\n'\)"),
        ("alpaca", {"instruction": "a", "output": 42}, r"output: must be a string, not 42"),
        ("alpaca", {"instruction": "a", "input": 5, "output": "b"}, r"input: must be a string, not 5"),
        (
            "alpaca",
            {"instruction": "a", "inputs": "x", "output": "b"},
            r"'inputs': unknown field; .* calls it input",
        ),
        ("alpaca", {"instruction": "a", "output": "b", "system": 1}, r"system: must be a string, not 1"),
        ("alpaca", {"instruction": "a", "output": "b", "history": "x"}, r"history: must be a list of \[question"),
        ("alpaca", {"instruction": "a", "output": "b", "history": [["x"]]}, r"history\[0\]: must be \[question"),
        ("alpaca", {"instruction": "a", "output": "b", "history": [["x", ""]]}, r"history\[0\]\[1\]: is empty"),
        ("messages", {"messages": "hello"}, r"messages: must be a list of at least one message, not 'hello'"),
        ("messages", {"messages": []}, r"messages: must be a list of at least one message, not \[\]"),
        ("messages", {"message": []}, r"messages: missing; .* did you mean it by 'message'\?"),
        ("messages", {"messages": ["a"]}, r"messages\[0\]: must be an object with role and content, not 'a'"),
        (
            "messages",
            {"messages": [{"role": "user"}]},
            r"messages\[0\]\.content: missing; the message has \['role'\]",
        ),
        ("messages", {"messages": [{"from": "a", "value": "b"}]}, r"messages\[0\]\.role: missing"),
        (
            "messages",
            {"messages": [user("a"), {"role": "asistant", "content": "b"}]},
            r"messages\[1\]\.role: 'asistant' is no role; use one of system, developer, user, assistant, tool",
        ),
        (
            "messages",
            {"messages": [{"role": ["user"], "content": "b"}]},
            r"messages\[0\]\.role: \['user'\] is no",
        ),
        ("messages", {"messages": [user(None)]}, r"messages\[0\]\.content: must be a string, not None"),
        (
            "messages",
            {"messages": [user([{"type": "text"}])]},
            r"messages\[0\]\.content\[0\]\.text: must be a string, not None",
        ),
        ("messages", {"messages": [user("a"), assistant("")]}, r"messages\[1\]\.content: is empty"),
        ("messages", {"messages": [user("a")]}, r"messages: holds no message of the role assistant"),
        (
            "messages",
            {"messages": [{**assistant("a"), "loss": 0}]},
            r"messages\[0\]: the field 'loss' is not supported",
        ),
        (
            "messages",
            {"messages": [assistant("a")], "tools": [1]},
            r"tools: must be a list of tool definitions",
        ),
        ("prompt_completion", {"prompt": "a"}, r"completion: missing"),
        ("prompt_completion", {"prompt": "a", "completion": ""}, r"completion: is empty"),
        ("prompt_completion", {"prompt": None, "completion": "b"}, r"prompt: must be a string, not None"),
        (
            "prompt_completion",
            {"prompt": "a", "completion": [assistant("b")]},
            r"completion: .* must both be strings",
        ),
        (
            "prompt_completion",
            {"prompt": [user("a")], "completion": [user("b")]},
            r"completion: holds no message of",
        ),
        ("prompt_completion", {"prompt": [user("a")], "completion": [{}]}, r"completion\[0\]\.role: missing"),
        ("text", {"txt": "a"}, r"text: missing; .* did you mean it by 'txt'\?"),
        ("text", {"text": ["a"]}, r"text: must be a string, not \['a'\]"),
        ("text", {"text": "a\ud800b"}, r"text: holds half of a surrogate pair \('\\ud800'\)"),
        ("text", {"text": True}, r"text: must be a string, not True"),
        ("tokens", {"input_ids": []}, r"input_ids: must be a list of at least one token id, not \[\]"),
        ("tokens", {"input_ids": "12"}, r"input_ids: must be a list of at least one token id, not '12'"),
        (
            "tokens",
            {"input_ids": [1, 100]},
            r"input_ids\[1\]: 100 is no token .* whole numbers from 0 to 99$",
        ),
        ("tokens", {"input_ids": [-1]}, r"input_ids\[0\]: -1 is no token"),
        ("tokens", {"input_ids": [1, True]}, r"input_ids\[1\]: True is no token"),
        ("tokens", {"input_ids": [1.0]}, r"input_ids\[0\]: 1\.0 is no token"),
        ("tokens", {"input_ids": [-100]}, r"input_ids\[0\]: -100 is no token"),
        ("tokens", {"input_ids": [10**30]}, r"input_ids\[0\]: 10+ is no token"),
        (
            "tokens",
            {"input_ids": [1, 2], "labels": [1]},
            r"labels: 1 labels for 2 input_ids; give one label per token",
        ),
        ("tokens", {"input_ids": [1], "labels": [-1]}, r"labels\[0\]: -1 is no token .* to 99, or -100$"),
        (
            "tokens",
            {"input_ids": [1], "label": [1]},
            r"'label': unknown field; the format tokens calls it labels",
        ),
        (
            "tokens",
            {"input_ids": [1, 2], "attention_mask": [0, 1]},
            r"attention_mask: not supported .* without padding",
        ),
    ],
)
def test_bad_records_are_refused_in_words(data_format, record, message):
    with pytest.raises(DataError, match=message):
        read_sample(record, data_format, VOCAB)


HUMAN, GPT = {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}
CALL = {"id": "x1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}


def test_sharegpt_turns_become_messages():
    turns = [
        HUMAN,
        {"from": "function_call", "value": '[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]'},
        {"from": "observation", "value": "1"},
        GPT,
    ]
    record = {"conversations": turns, "system": "s", "tools": '[{"name": "f"}]'}
    calls = [{"type": "function", "function": {"name": n, "arguments": a}} for n, a in (("f", {"a": 1}), ("g", {}))]
    assert read_sample(record, "sharegpt", VOCAB) == Chat(
        (
            {"role": "system", "content": "s"},
            user("a"),
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "content": "1"},
            assistant("b"),
        ),
        (2, 4),
        tools=({"type": "function", "function": {"name": "f"}},),
    )


def test_tool_messages_keep_what_templates_read():
    messages = [
        user("a"),
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "1", "tool_call_id": "x1", "name": "f"},
        assistant("b"),
    ]
    found = read_sample({"messages": messages}, "messages", VOCAB).messages
    assert found == (messages[0], {**messages[1], "content": ""}, *messages[2:])


def test_alpaca_with_system_and_history():
    record = {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]}
    turns = ({"role": "system", "content": "s"}, user("a"), assistant("b"), user("c"), assistant("d"))
    assert read_sample(record, "alpaca", VOCAB) == Chat(turns, (2, 4))  # and no text for models without a template


@pytest.mark.parametrize(
    ("record", "pairs", "expected"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, False, "preference"),
        ({"chosen_input_ids": [], "rejected_input_ids": []}, False, "preference"),
        ({"conversations": [], "chosen": {}, "rejected": {}}, False, "preference"),
        ({"messages": [], "chosen": {}, "rejected": {}}, False, "preference"),
        # As in ultrafeedback_binarized: a data set that serves both.
        ({"messages": [], "chosen": [], "rejected": []}, False, "messages"),
        ({"messages": [], "chosen": [], "rejected": []}, True, "preference"),
        ({"conversations": []}, True, "sharegpt"),
    ],
)
def test_pairs_are_found_where_they_are_wanted(record, pairs, expected):
    assert detect_format(record, pairs) == expected


@pytest.mark.parametrize("system", [{}, {"system": "s"}])
def test_a_prompt_of_text_before_answers_as_messages_is_the_question(system):
    sides = {"chosen": [assistant("b")], "rejected": [assistant("c")], **system}
    as_text = read_sample({"prompt": "a", **sides}, "preference", VOCAB)
    assert as_text == read_sample({"prompt": [user("a")], **sides}, "preference", VOCAB)


@pytest.mark.parametrize("field", ["story", "systems_used", "tooling", "put"])
def test_a_column_of_their_own_is_no_misspelt_field(field):
    record = {"instruction": "a", "output": "b"}
    assert read_sample({**record, field: "x"}, "alpaca", VOCAB) == read_sample(record, "alpaca", VOCAB)


@pytest.mark.parametrize("field", ["inputs", "sytem", "systems", " input", "histroy"])
def test_a_misspelt_field_is_named(field):
    with pytest.raises(DataError, match="unknown field; the format alpaca calls it"):
        read_sample({"instruction": "a", "output": "b", field: "x"}, "alpaca", VOCAB)


def test_turns_that_are_messages_get_a_hint():
    with pytest.raises(
        DataError, match=r"from: missing; .*set dataset\.format: messages, .*\{messages: conversations\}"
    ):
        read_sample({"conversations": [user("a"), assistant("b")]}, "sharegpt", VOCAB)


def test_a_conversation_that_both_sides_begin_with_is_the_prompt():
    record = {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c"), user("d"), assistant("e")]}
    pair = read_sample({**record, "prompt": "a"}, "preference", VOCAB)
    assert (pair.chosen.learned, pair.rejected.learned) == ((1,), (1, 3))


@pytest.mark.parametrize(
    ("data_format", "record", "message"),
    [
        ("sharegpt", {"conversations": [{"from": "human"}]}, r"conversations\[0\]\.value: missing; the turn has"),
        ("sharegpt", {"conversations": [{"from": "bot", "value": "a"}]}, r"conversations\[0\]\.from: 'bot' is no tag"),
        ("sharegpt", {"conversations": [HUMAN]}, r"conversations: holds no message of the role assistant"),
        ("sharegpt", {"conversations": []}, r"conversations: must be a list of at least one turn"),
        (
            "sharegpt",
            {"conversations": [HUMAN, {"from": "function_call", "value": "f(1)"}]},
            r"conversations\[1\]\.value: is not valid JSON \('f\(1\)'\)",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "system", "value": "a"}, HUMAN, GPT], "system": "b"},
            r"system: given twice",
        ),
        ("sharegpt", {"conversations": [HUMAN, GPT], "tools": "f"}, r"tools: is not valid JSON"),
        ("sharegpt", {"conversations": [HUMAN, GPT], "tool": []}, r"'tool': unknown field; .* calls it tools"),
        ("messages", {"messages": [{**user("a"), "tool_calls": [CALL]}]}, r"'tool_calls' is not supported"),
        (
            "messages",
            {"messages": [{**assistant("a"), "tool_calls": [{"name": "f"}]}]},
            r"tool_calls\[0\]: must be an object with name and arguments",
        ),
        (
            "messages",
            {"messages": [{**assistant("a"), "tool_calls": [{"name": "f", "arguments": "[1]"}]}]},
            r"tool_calls\[0\]\.arguments: must be a JSON object, not \[1\]",
        ),
        (
            "messages",
            {"messages": [{**assistant("a"), "tool_calls": [{"name": "f", "arguments": {"x": float("nan")}}]}]},
            r"tool_calls\[0\]\.arguments: cannot be written as JSON",
        ),
        ("messages", {"messages": [assistant("a")], "chat_template_kwargs": {"x": 1}}, r"chat_template_kwargs: not"),
        ("preference", {"prompt": "a", "chosen": "b"}, r"rejected: missing; a preference pair has chosen and rejected"),
        ("preference", {"prompt": "a", "chosen": "b", "rejected": [user("a")]}, r"rejected: .* must be of one kind"),
        ("preference", {"chosen": "b", "rejected": "c"}, r"prompt: missing, and chosen and rejected do not begin"),
        ("preference", {"prompt": "a", "chosen": "", "rejected": "c"}, r"chosen: is empty"),
        (
            "preference",
            {"chosen": [user("a"), assistant("b")], "rejected": [user("x"), assistant("b")]},
            r"rejected: does not begin with the messages that chosen begins with",
        ),
        (
            "preference",
            {"prompt": [user("a")], "chosen": [user("b")], "rejected": [assistant("b")]},
            r"chosen: holds no message of the role assistant",
        ),
        (
            "preference",
            {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt"}},
            r"rejected\.value: missing",
        ),
        (
            "preference",
            {"chosen_input_ids": [1], "chosen_labels": [1]},
            r"rejected_input_ids: missing",
        ),
        (
            "preference",
            {"chosen_input_ids": [1], "chosen_labels": [1], "rejected_input_ids": [500], "rejected_labels": [1]},
            r"rejected_input_ids\[0\]: 500 is no token",
        ),
    ],
)
def test_bad_conversations_and_pairs_are_refused_in_words(data_format, record, message):
    with pytest.raises(DataError, match=message):
        read_sample(record, data_format, VOCAB)


def test_values_are_shortened():
    with pytest.raises(DataError) as caught:
        read_sample({"text": list(range(10_000))}, "text", VOCAB)
    assert len(str(caught.value)) < 100
    with pytest.raises(DataError) as caught:
        read_sample({f"key{i}" * 50: 1 for i in range(1000)}, "text", VOCAB)
    assert len(str(caught.value)) < 500
