"""A base model's configuration comes from whoever names the base: what it asks for is bounded before it is built."""

import json
import multiprocessing

import pytest

from gpu_actor.contract.errors import BaseModelError
from gpu_actor.model import describe
from gpu_actor.model.describe import describe_base, describe_within_limits
from support.tiny import tiny_config


@pytest.mark.parametrize(
    ("field", "size"), [("hidden_size", 10**9), ("num_hidden_layers", 10**7), ("vocab_size", 2**40)]
)
def test_sizes_that_no_model_has_are_refused_at_once(tmp_path, field, size):
    config = {**tiny_config().to_dict(), "architectures": ["LlamaForCausalLM"], field: size}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match=rf"{field} is {size:,} in its configuration; allowed: up to"):
        describe_base(str(tmp_path))


def test_the_names_of_a_family_count_as_well(tmp_path):
    config = {**tiny_config("gpt2").to_dict(), "architectures": ["GPT2LMHeadModel"], "n_embd": 10**9}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match="n_embd is 1,000,000,000"):
        describe_base(str(tmp_path))


def _greedy(_ref, _trust):
    return bytearray(3 * 2**30)


def _endless(_ref, _trust):
    while True:
        pass


def _describe(replacement, answers):
    describe.describe_base = replacement
    try:
        describe_within_limits("base", False, 2, 2**30)
    except BaseModelError as error:
        answers.put(str(error))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("replacement", "said"), [(_greedy, "more than 1 GiB"), (_endless, "more than 2 s of processor time")]
)
def test_what_gets_past_that_is_ended(replacement, said):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_describe, args=(replacement, answers))
    process.start()
    assert f"base_model: base: its configuration alone takes {said} to build" in answers.get(timeout=120)
    process.join(120)
    assert process.exitcode == 0
