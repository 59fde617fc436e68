"""Families of base models, each on a tiny random model of its own architecture with its peculiarities on.

A dozen run with all other tests; `make families` runs the rest too and writes docs/families.md. One family alone:
`-m "" -k gemma2`. Every architecture that transformers knows: `test_every_architecture.py`.
"""

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model

from gpu_actor.batch.shared_batch import pack
from gpu_actor.contract.errors import BaseModelError, InvalidJobError
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.contract.report import TenantState
from gpu_actor.loading.layers import adaptable_linears
from gpu_actor.loading.load_model import load_model
from gpu_actor.loading.quantization import quantization_of
from gpu_actor.model.base_model import BaseModel
from support.engine import family_hooked, flat, make_spec, make_tenant, micro_batch, run_all
from support.oracle import adapter_tensors, largest_difference, same_bytes, train_alone
from support.pairs import formula_loop, pair_rows, pair_spec
from support.tiny import FAMILIES, family_model, token_rows

# The most used and the most different ones; `make families` runs all.
ALWAYS = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "glm4", "gpt2", "opt", "qwen3_moe")
ALWAYS += ("falcon", "bloom")
ALL = [f if f in ALWAYS else pytest.param(f, marks=pytest.mark.every_architecture) for f in FAMILIES]
IN_ROWS = {"falcon", "bloom", "gptj"}  # their attention does not go through transformers' attention interface
WITH_EXPERTS = ["qwen3_moe"]
# transformers quantises nn.Linear itself and Conv1D, but no class that is derived from them
NOT_QUANTISED = {"falcon": "FalconLinear"}
# The first step only fills Adam's moments (its rate is 0): from empty moments Adam makes a whole step of the sign of a
# gradient, of rounding too where a gradient is nearly zero, and the figure would be luck.
SHORT = {"max_steps": 6, "warmup_steps": 1, "learning_rate": 5e-3, "per_device_train_batch_size": 2}
QUERIES = ["q_proj", "qkv_proj", "query_key_value", "c_attn"]  # how the families call the layer that makes queries


def all_targets(base):
    """Every linear layer, as `target_modules` may say it: of a mixture of experts only by name."""
    ends = sorted({linear.name.rsplit(".", 1)[-1] for linear in base.description.linears})
    return ends if base.description.experts else "all-linear"


def family_jobs(base):
    """Three jobs that differ in targets, rank, scale, data, batch, accumulation, schedule, decay and clip."""
    names = [linear.name for linear in base.description.linears]
    queries = [name for name in QUERIES if any(own.endswith("." + name) for own in names)]
    # PEFT reads a regular expression for a mixture of experts as the last parts of what it matches, in every layer
    last_two = names[-2:] if base.description.experts else "|".join(name.replace(".", r"\.") for name in names[-2:])
    return {
        "everything": {
            "lora": {"r": 4, "lora_alpha": 8, "target_modules": all_targets(base)},
            "training": {
                "learning_rate": 2e-3,
                "max_steps": 10,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 2,
                "lr_scheduler_type": "cosine",
            },
            "rows": token_rows(13, seed=1),
        },
        "queries": {
            "lora": {"r": 8, "lora_alpha": 6, "target_modules": queries, "use_rslora": True},
            "training": {
                "learning_rate": 5e-3,
                "max_steps": 12,
                "per_device_train_batch_size": 3,
                "warmup_steps": 3,
                "weight_decay": 0.1,
            },
            "rows": token_rows(15, seed=2, low=15, high=50),
        },
        "last": {
            "lora": {"r": 3, "lora_alpha": 6, "target_modules": last_two},
            "training": {
                "learning_rate": 5e-3,
                "max_steps": 11,
                "per_device_train_batch_size": 1,
                "gradient_accumulation_steps": 3,
                "lr_scheduler_type": "constant",
                "max_grad_norm": 0.05,
                "seed": 7,
            },
            "rows": token_rows(9, seed=3, low=3, high=9, prompt=False),
        },
    }


def train(base, folder, jobs, budget=150):
    """Train jobs together; their specs, start values and trained tenants by name."""
    specs = {name: make_spec(folder, name, job["rows"], job["lora"], job["training"]) for name, job in jobs.items()}
    tenants = {name: make_tenant(base, spec) for name, spec in specs.items()}
    starts = {name: adapter_tensors(tenant.weights) for name, tenant in tenants.items()}
    reports = run_all(base, list(tenants.values()), budget).reports()
    assert [report.reason for report in reports if report.state is not TenantState.SUCCEEDED] == []
    return specs, starts, tenants


@pytest.mark.slow
@pytest.mark.parametrize("family", ALL)
def test_a_family_equals_solo_peft_and_trainer(tmp_path, family, record):
    """Several adapters co-batched, in fp32; and the probe chose the way of serving that is known to be right."""
    base = family_hooked(family)
    assert base.packed == (family not in IN_ROWS)
    jobs = family_jobs(base)
    specs, starts, tenants = train(base, tmp_path, jobs)
    differences = []
    for name, job in jobs.items():
        theirs, _ = train_alone(family_model(family), specs[name], job["rows"], starts[name])
        assert largest_difference(starts[name], theirs) > 1e-3, "the oracle did not train"
        differences.append(largest_difference(adapter_tensors(tenants[name].weights), theirs))
    assert max(differences) < 1e-4
    record("three adapters", max(differences))


def difference_of(base, spec, oracle):
    """Train one job; the largest difference of any value from `oracle(start)`, which must have trained.

    No matrix starts at zero, or its partner would get its first gradient a step too late for `SHORT`.
    """
    tenant = make_tenant(base, spec)
    noise = torch.randn(tenant.weights.flat.shape, generator=torch.Generator().manual_seed(1))
    tenant.weights.flat.data.add_(noise, alpha=0.05)
    start = adapter_tensors(tenant.weights)
    (report,) = run_all(base, [tenant]).reports()
    assert report.state is TenantState.SUCCEEDED, report.reason
    theirs, _ = oracle(start)
    assert largest_difference(start, theirs) > 1e-3, "the oracle did not train"
    return largest_difference(adapter_tensors(tenant.weights), theirs)


@pytest.mark.parametrize("family", ALL)
@pytest.mark.slow
def test_a_family_on_an_nf4_base_equals_pefts_qlora(tmp_path, family, record):
    folder = str(tmp_path / "base")
    family_model(family).save_pretrained(folder)
    if family in NOT_QUANTISED:
        own = NOT_QUANTISED[family]
        assert {type(module).__name__ for module in adaptable_linears(family_model(family)).values()} == {own}
        with pytest.raises(BaseModelError, match=f"8 linear layers of a {family} model cannot be quantised to nf4"):
            load_model(folder, quantization="nf4")
        record("nf4", f"refused: transformers does not quantise `{own}`")
        return
    base = BaseModel.load(folder, quantization="nf4")
    assert base.packed == (family not in IN_ROWS), "quantising must not change how the family is served"
    rows, stock = token_rows(9, seed=4), load_model(folder, quantization="nf4")
    assert {quantization_of(module) for module in adaptable_linears(stock).values()} == {"nf4"}
    assert all(stock.get_parameter(name).dtype == torch.float32 for name in base.description.experts)
    spec = make_spec(tmp_path, "nf4", rows, {"r": 4, "target_modules": all_targets(base)}, SHORT)
    difference = difference_of(base, spec, lambda start: train_alone(stock, spec, rows, start))
    assert difference < 1e-4
    record("nf4", difference)


@pytest.mark.parametrize("family", ALL)
@pytest.mark.slow
def test_a_familys_dora_adapter_equals_pefts(tmp_path, family, record):
    base, rows = family_hooked(family), token_rows(9, seed=5)
    lora = {"r": 4, "lora_alpha": 7, "use_dora": True, "target_modules": all_targets(base)}
    spec = make_spec(tmp_path, "dora", rows, lora, SHORT)
    difference = difference_of(base, spec, lambda start: train_alone(family_model(family), spec, rows, start))
    assert difference < 1e-4
    record("DoRA", difference)


@pytest.mark.parametrize("family", ALL)
@pytest.mark.slow
def test_a_familys_dpo_adapter_equals_peft_and_the_papers_formula(tmp_path, family, record):
    base, rows = family_hooked(family), pair_rows(7, seed=6)
    training = {**SHORT, "objective": "dpo", "beta": 0.3}
    spec = pair_spec(tmp_path, "dpo", rows, {"r": 4, "target_modules": all_targets(base)}, training)
    difference = difference_of(base, spec, lambda start: formula_loop(family_model(family), spec, rows, start))
    assert difference < 1e-4
    record("DPO", difference)


@pytest.mark.parametrize("family", ALL)
@pytest.mark.slow
def test_a_familys_bytes_are_the_same_alone_and_in_company(tmp_path, family):
    base = family_hooked(family)
    jobs = {name: {**job, "training": {**job["training"], "max_steps": 4}} for name, job in family_jobs(base).items()}
    jobs["everything"]["lora"]["lora_dropout"] = 0.1
    together = train(base, tmp_path / "together", jobs, budget=120)[2]
    for name, job in jobs.items():
        alone = train(base, tmp_path / "alone", {name: job})[2][name]
        assert same_bytes(flat(alone), flat(together[name]))


@pytest.mark.parametrize("family", ALL)
def test_all_linear_takes_the_layers_that_peft_takes(family):
    """PEFT takes a mixture's router and experts along; Loray cannot, and refuses rather than train less in silence."""
    theirs = get_peft_model(family_model(family), PeftLoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    prefix = "base_model.model."
    wrapped = [name[len(prefix) :] for name, module in theirs.named_modules() if hasattr(module, "lora_A")]
    base = family_hooked(family)
    if family in WITH_EXPERTS:
        assert any(name.endswith("mlp.experts") for name in wrapped)
        with pytest.raises(InvalidJobError, match=r"all-linear would mean the experts.*k_proj, o_proj, q_proj, v_proj"):
            base.new_adapter(LoraConfig(target_modules="all-linear"))
    else:
        assert list(base.new_adapter(LoraConfig(target_modules="all-linear")).names.values()) == wrapped


@pytest.mark.parametrize("family", WITH_EXPERTS)
@pytest.mark.parametrize("target", ["gate_up_proj", "experts", "gate", r".*\.mlp\.experts"])
def test_experts_and_routers_are_refused_by_name(family, target):
    targets = target if "*" in target else ["q_proj", target]
    with pytest.raises(InvalidJobError, match="no linear layer") as caught:
        family_hooked(family).new_adapter(LoraConfig(target_modules=targets))
    assert repr(target) in str(caught.value)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "opt", "qwen3_moe", "falcon"])
@pytest.mark.slow
def test_gradient_checkpointing_changes_no_byte(tmp_path, family):
    found = []
    for checkpointing in (False, True):
        base = BaseModel.serve("tiny", family_model(family), gradient_checkpointing=checkpointing)
        tenants = train(base, tmp_path / str(checkpointing), family_jobs(base))[2]
        found.append({name: flat(tenant) for name, tenant in tenants.items()})
    assert all(same_bytes(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("family", ["mistral", "gemma3_text", "gptj", "bloom"])
def test_logits_equal_the_stock_models_in_fp64(family):
    """Packed or in rows: each sequence's logits are those of the stock model on it alone (two use fp32 inside)."""
    base, stock = family_hooked(family, torch.float64), family_model(family, dtype=torch.float64)
    batch = pack([micro_batch(None, [3, 30, 12], 1), micro_batch(None, [9], 2)], torch.device("cpu"))
    ids = batch.input_ids[0].split(list(batch.lengths))
    expected = torch.cat([stock(one[None]).logits[0] for one in ids])
    torch.testing.assert_close(base.logits(batch), expected, rtol=0, atol=1e-5 if family in IN_ROWS else 1e-10)
