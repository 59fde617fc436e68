"""Which layers an adapter changes: PEFT's own choice, rank and scale for the same fields."""

import contextlib
import json
import threading

import psutil
import pytest
from peft import get_peft_model
from pydantic import ValidationError

from gpu_actor.adapters.forbidden_targets import check_no_experts
from gpu_actor.adapters.shapes import adapter_bytes, adapter_parameters, frozen_values
from gpu_actor.adapters.start_check import check_adapter_fits
from gpu_actor.adapters.targets import plan_layers
from gpu_actor.contract import expressions
from gpu_actor.contract.description import BaseDescription, LinearShape
from gpu_actor.contract.errors import InvalidJobError, KilledError
from gpu_actor.contract.lora_config import LoraConfig
from support.engine import tiny_hooked
from support.oracle import peft_config
from support.tiny import tiny_model

CHOICES = [
    {"target_modules": ["q_proj", "mlp.up_proj"]},
    {"target_modules": r".*\.(q|v)_proj"},
    {"target_modules": "all-linear", "exclude_modules": ["down_proj", "self_attn.q_proj"]},
    {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": 1},
    {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [0], "layers_pattern": "layers"},
    {"target_modules": ["v_proj", "model.layers.0.self_attn.q_proj"], "layers_to_transform": [1]},
    {"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*layers\.1.*q_proj", "use_rslora": True},
    {"rank_pattern": {"q_proj": 2, r"layers\.1\..*": 5, ".*_proj": 3}, "alpha_pattern": {"v_proj": 32, "mlp.*": 4}},
    {"rank_pattern": {r"^model\.layers\.0\.mlp\.up_proj": 7}, "use_rslora": True},
    {"peft_type": "VERA", "r": 8, "target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
]


@pytest.mark.parametrize("fields", CHOICES)
def test_layers_ranks_and_scales_are_those_of_peft(fields):
    lora = LoraConfig(**fields)
    wrapped = get_peft_model(tiny_model(), peft_config(lora))
    theirs = {
        name.removeprefix("base_model.model."): (
            module.r["default"],
            module.scaling["default"] if lora.peft_type == "LORA" else 1.0,
        )
        for name, module in wrapped.named_modules()
        if isinstance(getattr(module, "r", None), dict)
    }
    description = tiny_hooked().description
    ours = {plan.name: (plan.rank, plan.scaling) for plan in plan_layers(description, lora)}
    assert ours == theirs
    trained = sum(parameter.numel() for parameter in wrapped.parameters() if parameter.requires_grad)
    assert adapter_parameters(description, lora) == trained


def test_every_layer_of_some_numbers_can_be_asked_for(tiny_description):
    """PEFT refuses this with all-linear; here it means what it says."""
    plans = plan_layers(tiny_description, LoraConfig(layers_to_transform=[1]))
    assert len(plans) == 7
    assert all(".1." in plan.name for plan in plans)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"exclude_modules": ["query"]}, "lora.exclude_modules: 'query' matches no linear layer"),
        ({"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]}, "excludes every layer"),
        ({"layers_to_transform": [0, 2]}, "lora.layers_to_transform: 2 is no layer .* have the numbers 0 to 1"),
        (
            {"layers_to_transform": 0, "layers_pattern": "h"},
            "no targeted layer has lora.layers_pattern 'h' and a number",
        ),
        ({"rank_pattern": {"self_attn": 4}}, "lora.rank_pattern: 'self_attn' matches no layer"),
        ({"rank_pattern": {"query": 4}}, "lora.rank_pattern: 'query' matches no layer .* end in down_proj"),
        ({"alpha_pattern": {"q_proj": 4}, "target_modules": ["k_proj"]}, "lora.alpha_pattern: 'q_proj' matches no"),
        ({"init_lora_weights": "pissa", "r": 65}, "pissa cannot give a rank of 65 to .*q_proj .64 inputs"),
    ],
)
def test_what_matches_nothing_is_refused(tiny_description, fields, message):
    with pytest.raises(InvalidJobError, match=message):
        plan_layers(tiny_description, LoraConfig(**fields))


ENDLESS = r"((\w|\.)+)+!"  # tries 2^n ways to match n characters


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"target_modules": ENDLESS}, "target_modules"),
        ({"exclude_modules": ENDLESS}, "exclude_modules"),
        ({"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": ENDLESS}, "layers_pattern"),
        ({"rank_pattern": {"q_proj": 2, ENDLESS: 2}}, "rank_pattern"),
        ({"alpha_pattern": {ENDLESS: 2}}, "alpha_pattern"),
    ],
)
@pytest.mark.slow
def test_an_expression_that_would_never_end_is_refused_and_holds_up_nobody(
    tiny_description, monkeypatch, fields, field
):
    """Other threads of the process run on meanwhile; asked again, the answer is known."""
    monkeypatch.setattr(expressions, "_CPU_SECONDS", 1)
    expressions._run.cache_clear()
    description, lora = tiny_description, LoraConfig(**fields)
    turns, over = [], threading.Event()

    def watch():
        while not over.wait(0.05):
            turns.append(1)

    other = threading.Thread(target=watch)
    other.start()
    try:
        with pytest.raises(InvalidJobError, match=rf"lora.{field}: .*\)\+\)\+!' takes more than 1 seconds"):
            plan_layers(description, lora)
    finally:
        over.set()
        other.join()
    assert len(turns) > 3
    runs = expressions._run.cache_info().misses
    with pytest.raises(InvalidJobError):
        plan_layers(description, lora)
    assert expressions._run.cache_info().misses == runs


def test_an_expression_whose_process_is_killed_is_not_blamed(tiny_description):
    said = []

    def attempt():
        with pytest.raises(KilledError) as caught:
            plan_layers(tiny_description, LoraConfig(target_modules=ENDLESS))
        said.append(str(caught.value))

    expressions._run.cache_clear()
    matching = threading.Thread(target=attempt)
    matching.start()
    while matching.is_alive():
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if any("match_process" in word for word in child.cmdline()):
                    child.kill()
    assert said[0].startswith("lora.target_modules: the process that matches regular expressions was killed")
    assert expressions._run.cache_info().currsize == 0  # asked again, it is tried again


@pytest.mark.slow
def test_an_expression_that_would_take_all_memory_is_refused(tiny_description):
    """Each repetition waits to be taken back, so that 2 seconds of them are gigabytes."""
    lora = LoraConfig(target_modules="(?:a?){2000000000}")
    with pytest.raises(InvalidJobError, match=r"lora.target_modules: '.*' takes more than 512 MiB to match"):
        plan_layers(tiny_description, lora)


EXPERT = "model.layers.10.block_sparse_moe.experts.up_proj"


@pytest.mark.slow
def test_an_expression_that_would_never_end_is_refused_for_experts_and_start_adapters(tmp_path):
    base = BaseDescription("moe", "moe", (LinearShape("a.q_proj", 4, 4),), 4, 1, 8, 9, experts=(EXPERT,))
    with pytest.raises(InvalidJobError, match=r"lora.target_modules: .* takes more than"):
        check_no_experts(base, ENDLESS)
    lora = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj"], init_adapter=str(tmp_path))
    saved = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"], "alpha_pattern": {ENDLESS: 3}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(saved))
    base = BaseDescription("b", "b", (LinearShape("model.layers.10.self_attn.q_proj", 4, 4),), 4, 1, 8, 9)
    with pytest.raises(InvalidJobError, match=r"lora.alpha_pattern: .* takes more than"):
        check_adapter_fits(base, lora)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(", "is not a regular expression"),
        ("(" * 900, "is not a regular expression"),
        ("a{99999999999999999999}", "is not a regular expression: the repetition number is too large"),
        ("a" * 1001, "of 1001 characters; allowed are 1000"),
    ],
)
def test_what_is_no_expression_is_refused_with_the_job(text, message):
    for field, value in (("target_modules", text), ("rank_pattern", {text: 2})):
        with pytest.raises(ValidationError, match=message):
            LoraConfig(**{field: value})


def test_a_pattern_that_cannot_stand_inside_of_pefts_is_refused_in_words(tiny_description):
    with pytest.raises(InvalidJobError, match=r"lora.rank_pattern: '\(\?i\)q_proj' is not a regular expression here"):
        plan_layers(tiny_description, LoraConfig(rank_pattern={"(?i)q_proj": 2}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "VERA"}, "r is missing"),
        ({"peft_type": "VERA", "r": 8, "lora_alpha": 16}, "lora_alpha is not a part of VeRA"),
        ({"peft_type": "VERA", "r": 8, "use_dora": True}, "use_dora is not a part of VeRA"),
        ({"peft_type": "VERA", "r": 8, "exclude_modules": ["q"]}, "exclude_modules is not a part of VeRA"),
        ({"peft_type": "VERA", "r": 8, "lora_dropout": 0.1}, "lora_dropout is called vera_dropout"),
        ({"d_initial": 0.2}, "d_initial belongs to peft_type VERA"),
        ({"use_dora": True, "init_lora_weights": "pissa"}, "would lose DoRA's magnitudes"),
        ({"init_lora_weights": "orthogonal", "r": 3}, "needs even ranks; 3 is odd"),
        ({"init_lora_weights": "pissa_niter_0"}, "is no start that Loray has"),
        ({"init_lora_weights": False}, "is no start that Loray has"),
        ({"init_lora_weights": "pissa", "init_adapter": "/x"}, "does not go with init_adapter"),
        ({"target_modules": ".*q", "layers_to_transform": 1}, "does not go with a target_modules that is a regular"),
        ({"layers_pattern": "h"}, "needs layers_to_transform"),
        ({"rank_pattern": {"(": 4}}, "is not a regular expression"),
        ({"rank_pattern": {"q_proj": 0}}, "greater than or equal to 1"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        LoraConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"r": 8, "target_modules": ["q_proj", "gate_proj"]},
        {"use_dora": True, "rank_pattern": {"q_proj": 3}},
        {"init_lora_weights": "pissa_niter_2", "r": 4},
        {"peft_type": "VERA", "r": 16, "target_modules": ["k_proj", "down_proj"]},
    ],
)
def test_the_predicted_size_of_an_adapter_is_its_size(fields):
    base, lora = tiny_hooked(), LoraConfig(**fields)
    weights = base.new_adapter(lora)
    held = weights.shared.values() or [tensor for pair in weights.frozen.values() for tensor in pair]
    frozen = sum(tensor.numel() for tensor in held)
    assert adapter_parameters(base.description, lora) == weights.parameters
    assert frozen_values(base.description, lora) == (64 * 100 if lora.use_dora else frozen)
    assert adapter_bytes(base.description, lora) == 16 * weights.parameters + 4 * frozen_values(base.description, lora)
