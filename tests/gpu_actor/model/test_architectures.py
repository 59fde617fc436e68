"""Bases as they are published, multimodal ones and mixtures too: what Loray accepts, PEFT loads as it was trained."""

import logging

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model

from gpu_actor.adapters.peft_files import save_adapter
from gpu_actor.adapters.start_check import check_adapter_fits
from gpu_actor.batch.shared_batch import pack
from gpu_actor.contract.errors import AdapterError, InvalidJobError
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.contract.report import TenantState
from gpu_actor.loading.load_model import load_model
from gpu_actor.model.base_model import BaseModel
from gpu_actor.model.describe import describe_base
from support.architectures import ARCHITECTURES, architecture_model
from support.engine import make_spec, make_tenant, micro_batch, run_all
from support.oracle import adapter_tensors, largest_difference, train_alone
from support.tiny import token_rows

CPU = torch.device("cpu")
EXPERTS = {"down_proj", "gate_proj", "up_proj"}
MAMBA_OUTPUT = {"out_proj"}
# The endings of linear layers that PEFT does not load on a base of this kind; all others it loads.
REFUSED = {
    **dict.fromkeys(("glm4_moe", "deepseek_v3", "qwen3_next", "ernie4_5_moe"), EXPERTS),
    **dict.fromkeys(("falcon_h1", "mamba2"), MAMBA_OUTPUT),
}
# Why `all-linear` cannot be had there, and what the refusal says.
NOT_ALL_LINEAR = {
    **dict.fromkeys(("falcon_h1", "mamba2"), r"PEFT refuses this layer on a \w+ base; the names that work are"),
    "modernbert-decoder": "means lm_head.dense too, which belongs to the output head",
    **dict.fromkeys(
        ("llama4_text", "gpt_oss", "mixtral", "qwen2_moe", "glm4_moe", "deepseek_v3", "qwen3_next", "ernie4_5_moe"),
        "all-linear would mean the experts",
    ),
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    """A checkpoint as transformers writes it."""
    path = tmp_path_factory.mktemp(kind)
    architecture_model(kind).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def base(folder):
    return BaseModel.load(folder)


def endings_of(base):
    return sorted({linear.name.rsplit(".", 1)[-1] for linear in base.description.linears})


def random_adapter(base, targets):
    weights = base.new_adapter(LoraConfig(r=4, target_modules=targets))
    noise = torch.randn(weights.flat.shape, generator=torch.Generator().manual_seed(1))
    weights.flat.data.copy_(noise * 0.1)
    return weights


@pytest.mark.slow
def test_what_is_saved_is_what_peft_loads(kind, folder, base, tmp_path):
    """No tensor is lost, none comes from nowhere, and the logits are the engine's."""
    refused = REFUSED.get(kind, set())
    accepted = [ending for ending in endings_of(base) if ending not in refused]
    choices = [accepted, *([] if kind in NOT_ALL_LINEAR else ["all-linear"])]
    for number, targets in enumerate(choices):
        weights = random_adapter(base, targets)
        adapter = tmp_path / str(number)
        adapter.mkdir()
        save_adapter(adapter, weights, folder)
        batch = pack([micro_batch(weights, [17], 3)], CPU)
        bare = pack([micro_batch(None, [17], 3)], CPU)
        loaded = PeftModel.from_pretrained(load_model(folder), adapter).eval()
        wrapped = {
            name.removeprefix("base_model.model.")
            for name, module in loaded.named_modules()
            if hasattr(module, "lora_A")
        }
        assert wrapped == set(weights.names.values())
        with torch.no_grad():
            theirs = loaded(input_ids=batch.input_ids, use_cache=False).logits[0]
        assert (base.logits(bare) - theirs).abs().max() > 1e-2
        torch.testing.assert_close(base.logits(batch), theirs, rtol=0, atol=1e-4 * theirs.abs().max().item())


def test_what_peft_would_not_load_is_refused_with_the_names_that_work(kind, base):
    usable = ", ".join(ending for ending in endings_of(base) if ending not in REFUSED.get(kind, ()))
    for ending in REFUSED.get(kind, ()):
        with pytest.raises(InvalidJobError, match=f"PEFT would not load the result: .*names that work are {usable}"):
            base.new_adapter(LoraConfig(target_modules=[ending]))
    if kind in NOT_ALL_LINEAR:
        with pytest.raises(InvalidJobError, match=NOT_ALL_LINEAR[kind]) as caught:
            base.new_adapter(LoraConfig(target_modules="all-linear"))
        assert usable in str(caught.value)


@pytest.mark.slow
def test_a_base_is_described_as_it_is_served(folder, base, caplog, monkeypatch):
    """The orchestrator decides by the one, the actor by the other; what cannot be counted is no stack trace."""
    torchs_own, traces = logging.getLogger("torch._subclasses.fake_tensor"), logging.Handler()
    monkeypatch.setattr(traces, "emit", lambda record: pytest.fail(f"torch prints {record.getMessage()}"))
    torchs_own.addHandler(traces)  # what it logs goes to stderr by a way of its own
    try:
        with caplog.at_level(logging.INFO):
            described = describe_base(folder)
    finally:
        torchs_own.removeHandler(traces)
    assert described.from_dict(described.to_dict()) == described
    assert {**described.to_dict(), "activations": None} == base.description.to_dict()
    said = [record for record in caplog.records if record.name.startswith("gpu_actor")]
    assert len(said) == (described.activations is None)
    assert not any(record.exc_info or "\n" in record.getMessage() for record in said)


@pytest.mark.parametrize("kind", ["glm4_moe"])
def test_an_expression_that_peft_reads_as_more_is_refused_on_a_mixture(kind):
    """PEFT takes the last parts of what it matches, in every layer."""
    base, first = BaseModel.serve("tiny", architecture_model(kind)), r"model\.layers\.0\..*q_proj"
    theirs = get_peft_model(architecture_model(kind), PeftLoraConfig(target_modules=first, task_type="CAUSAL_LM"))
    wrapped = [name for name, module in theirs.named_modules() if hasattr(module, "lora_A")]
    assert [name.split(".")[4] for name in wrapped] == ["0", "1"]
    with pytest.raises(InvalidJobError, match=r"as q_proj of every layer, which is more \(model\.layers\.1\."):
        base.new_adapter(LoraConfig(target_modules=first))
    assert len(base.new_adapter(LoraConfig(target_modules=r"model\..*\.q_proj")).names) == 2


def test_layers_of_towers_and_of_the_head_are_no_targets(tmp_path):
    base = BaseModel.serve("tiny", architecture_model("gemma3"))
    both = PeftLoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(architecture_model("gemma3"), both).save_pretrained(str(tmp_path))
    start = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_adapter=str(tmp_path))
    with pytest.raises(AdapterError, match=r"also changes \d+ layers that read images or sound, such as model\.vision"):
        check_adapter_fits(base.description, start)
    with pytest.raises(InvalidJobError, match=r"'fc1' means layers that read images or sound, such as model\.vision"):
        base.new_adapter(LoraConfig(target_modules=["q_proj", "fc1"]))
    language = [linear.name for linear in base.description.linears]
    for targets, excluded in (("all-linear", None), ("all-linear", ".*vision_tower.*"), (r".*\.\w+_proj", None)):
        weights = base.new_adapter(LoraConfig(target_modules=targets, exclude_modules=excluded))
        assert list(weights.names.values()) == language
    head = BaseModel.serve("tiny", architecture_model("modernbert-decoder"))
    for targets in (["q_proj", "dense"], r".*(q_proj|dense)"):
        with pytest.raises(InvalidJobError, match=r"lm_head\.dense too, which belongs to the output head"):
            head.new_adapter(LoraConfig(target_modules=targets))
    assert head.new_adapter(LoraConfig(target_modules="all-linear", exclude_modules=["dense"])).names


@pytest.mark.parametrize("kind", ["gemma3", "gemma4", "falcon_h1", "llama4_text"])
@pytest.mark.slow
def test_an_adapter_of_such_a_base_equals_trainers(kind, tmp_path):
    base, rows = BaseModel.serve("tiny", architecture_model(kind)), token_rows(9, seed=4)
    # PEFT cannot wrap the layers of Gemma 4's tower, which have these names too
    lora = {"r": 4, "target_modules": r".*(?<!tower.encoder).layers\.\d+\..*(q_proj|o_proj)"}
    training = {"max_steps": 6, "warmup_steps": 1, "learning_rate": 5e-3, "per_device_train_batch_size": 2}
    spec = make_spec(tmp_path, "job", rows, lora, training)
    tenant = make_tenant(base, spec)
    tenant.weights.flat.data.add_(torch.randn_like(tenant.weights.flat), alpha=0.05)
    start = adapter_tensors(tenant.weights)
    (report,) = run_all(base, [tenant]).reports()
    assert report.state is TenantState.SUCCEEDED, report.reason
    theirs, _ = train_alone(architecture_model(kind), spec, rows, start)
    assert largest_difference(start, theirs) > 1e-3, "the oracle did not train"
    assert largest_difference(adapter_tensors(tenant.weights), theirs) < 1e-4
