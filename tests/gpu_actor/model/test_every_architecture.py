"""Every causal architecture that transformers knows: served as PEFT and Trainer would, or refused in words.

No refusal by accident: an error from inside, or a message that carries one, is a fault, and so is a base model that is
accepted although its jobs then fail. Only `make families` runs all; one alone: `-m "" -k jamba`.
"""

import re

import numpy as np
import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from gpu_actor.batch.shared_batch import MicroBatch, pack
from gpu_actor.contract.errors import BaseModelError, InvalidJobError
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.contract.report import TenantState
from gpu_actor.loading.load_model import load_model
from gpu_actor.model.base_model import BaseModel
from gpu_actor.model.describe import describe_base
from support.engine import make_spec, make_tenant, micro_batch, run_all
from support.every_architecture import ARCHITECTURES, save_architecture
from support.oracle import adapter_tensors, largest_difference, train_alone
from support.tiny import VOCABULARY, token_rows

# Kinds that differ in how a sequence can see its neighbour: mixtures, recurrences, convolutions, a multimodal class;
# one whose adapters PEFT reads by other names, and two that are refused: by its own loss, and by its configuration.
ALWAYS = ("qwen3_moe", "recurrent_gemma", "qwen3_5_text", "lfm2", "gemma3", "laguna", "bart", "blt")
ALL = [k if k in ALWAYS else pytest.param(k, marks=pytest.mark.every_architecture) for k in ARCHITECTURES]

# What Python and torch say when code meets what it was not written for.
_FROM_INSIDE = re.compile(
    r"has no attribute|unexpected keyword|positional argument|NoneType|object is not|not (subscriptable|iterable)|"
    r"unsupported operand|must match the size|shapes cannot be|is invalid for input|out of (range|bounds)|"
    r"(Attribute|Type|Key|Index|Runtime|Assertion|NotImplemented)Error|Traceback|^'\w+'$"
)
# Of a mixture's hidden states, whose products round otherwise when an expert has other rows.
FP32_ROUNDING, BF16_ROUNDING = 1e-6, 2e-2
TRAINING = {"max_steps": 4, "warmup_steps": 1, "learning_rate": 5e-3, "per_device_train_batch_size": 2}


def in_words(refusal):
    """A refusal's text, which must be for people."""
    text = str(refusal)
    inside = _FROM_INSIDE.search(text)
    assert not inside, f"refused by accident: {text}"
    assert re.search(r"[Uu]se |[Nn]ame |[Ss]et |Loray trains|instead|names that work", text), f"no way out: {text}"
    return text


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.slow
def test_an_architecture_is_served_right_or_refused_in_words(tmp_path, kind, record):
    folder = str(tmp_path / "base")
    save_architecture(kind, folder)
    try:
        base = BaseModel.load(folder)
    except BaseModelError as refusal:
        record("served", "refused: " + in_words(refusal).split(": ", 2)[2])
        return
    record("served", "packed" if base.packed else "one per row")
    assert describe_base(folder).linears == base.description.linears
    assert neighbours_leak(base) <= (FP32_ROUNDING if base.description.experts else 0)
    names = accepted_targets(base)
    learned = learned_targets(folder, names)
    if len(learned) < len(names):
        record("never learned", ", ".join(sorted(set(names) - set(learned))))
    specs, rows, starts, trained = co_train(base, tmp_path, names, learned)
    differences = []
    for name, spec in specs.items():
        theirs, _ = train_alone(load_model(folder), spec, rows[name], starts[name])
        assert largest_difference(starts[name], theirs) > 1e-3, "the oracle did not train"
        differences.append(largest_difference(adapter_tensors(trained[name].weights), theirs))
    random = [remark for remark in base.remarks if "draws random numbers" in remark]
    record("equal to PEFT", "no: its training mode draws random numbers" if random else max(differences))
    assert max(differences) < 1e-4 or random
    loaded = max(difference_in_peft(base, folder, tenant, specs[name]) for name, tenant in trained.items())
    record("loads in PEFT", loaded)
    assert loaded < 1e-4
    half_precision(folder, record)


def test_a_layer_that_no_gradient_reaches_is_named_in_the_jobs_report(tmp_path):
    """Mamba multiplies by the weight of `dt_proj` and goes around the layer, in PEFT as here."""
    folder, names = str(tmp_path / "base"), ["dt_proj", "x_proj"]
    save_architecture("mamba", folder)
    assert learned_targets(folder, names) == ["x_proj"]
    base = BaseModel.load(folder)
    spec = make_spec(tmp_path, "job", token_rows(4, seed=1), {"target_modules": names}, TRAINING)
    (report,) = run_all(base, [make_tenant(base, spec)], 150).reports()
    assert (report.state, report.unreached) == (TenantState.SUCCEEDED, "4 of 8 layers (dt_proj)")


def half_precision(folder, record):
    """In bf16, a sequence keeps every bit whatever its neighbours are; or the base is refused in words."""
    try:
        base = BaseModel.load(folder, dtype="bfloat16")
    except BaseModelError as refusal:
        record("neighbour, bf16", "refused: " + in_words(refusal).split(": ", 2)[2])
        return
    leak, rounds = neighbours_leak(base), bool(base.description.experts)
    why = ": its experts round by their rows" if rounds else ""
    record("neighbour, bf16", f"changes by {leak:.0e}{why}" if leak else "same bits")
    allowed = BF16_ROUNDING if rounds else 0
    assert leak <= allowed, f"in bf16 a sequence changes with its neighbour, by {leak:.0e} of its largest value"


def neighbours_leak(base):
    """How far a sequence's hidden states change when those around it become others of the same lengths."""
    random = np.random.default_rng(0)
    mine = random.integers(3, VOCABULARY, 12, dtype=np.int32)

    def hidden():
        before, after, other = (random.integers(3, VOCABULARY, n, dtype=np.int32) for n in (40, 17, 9))
        micro_batches = [[other], [before, mine], [after]]
        batch = pack([MicroBatch(None, ids, ids) for ids in micro_batches], base.device)
        with torch.no_grad():
            return base.hidden(batch)[0].split([9, 40, 12, 17])[2].double()

    one, another = hidden(), hidden()
    return float((one - another).abs().max() / one.abs().max())


def learned_targets(folder, names):
    """Those of the names that any gradient reaches in PEFT; some families run a layer without, or around it."""
    model = get_peft_model(load_model(folder), PeftLoraConfig(r=2, target_modules=names, init_lora_weights=False))
    ids = torch.tensor([token_rows(1, seed=3, low=30)[0]["input_ids"]])
    model.train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    reached = [n for n, value in model.named_parameters() if value.grad is not None and bool(value.grad.any())]
    return [name for name in names if any(f".{name}.lora_" in parameter for parameter in reached)]


def co_train(base, folder, names, learned):
    """Two jobs that differ in targets, rank, scale and data, trained together; no adapter matrix starts at zero."""
    whole = learned == names and refusal_of(base, "all-linear") is None
    loras = {
        "all": {"r": 4, "lora_alpha": 7, "target_modules": "all-linear" if whole else learned},
        "one": {"r": 3, "lora_alpha": 6, "target_modules": learned[-1:], "use_rslora": True},
    }
    rows = {"all": token_rows(7, seed=1), "one": token_rows(9, seed=2, low=3, high=20)}
    specs = {name: make_spec(folder, name, rows[name], lora, TRAINING) for name, lora in loras.items()}
    tenants = {name: make_tenant(base, spec) for name, spec in specs.items()}
    for tenant in tenants.values():
        noise = torch.randn(tenant.weights.flat.shape, generator=torch.Generator().manual_seed(1))
        tenant.weights.flat.data.add_(noise, alpha=0.05)
    starts = {name: adapter_tensors(tenant.weights) for name, tenant in tenants.items()}
    reports = run_all(base, list(tenants.values()), 150).reports()
    assert [report.reason for report in reports if report.state is not TenantState.SUCCEEDED] == []
    return specs, rows, starts, tenants


def accepted_targets(base):
    """The linear layers' names as `target_modules` may give them."""
    names = list(dict.fromkeys(end_of(linear.name) for linear in base.description.linears))
    accepted = [name for name in names if refusal_of(base, [name]) is None]
    assert accepted, f"none of {names} can be named"
    return accepted


def refusal_of(base, targets):
    """Why a job may not name such targets (experts, layers that PEFT does not load), in words; None if it may."""
    try:
        base.new_adapter(LoraConfig(target_modules=targets))
    except InvalidJobError as refusal:
        return in_words(refusal)
    return None


def end_of(name):
    """The last part of a module's name, with what stands before it where that is a number."""
    parts = name.split(".")
    start = next(i for i in range(len(parts) - 1, -1, -1) if not parts[i].isdigit())
    return ".".join(parts[start:])


def difference_in_peft(base, folder, tenant, spec):
    """The saved adapter in PEFT: all of its tensors arrive and no others; the difference of the logits, relative."""
    saved = load_file(f"{spec.output_dir}/adapter_model.safetensors")
    theirs = PeftModel.from_pretrained(load_model(folder), spec.output_dir).eval()
    arrived = {name.replace(".default", ""): value for name, value in theirs.named_parameters() if "lora_" in name}
    assert arrived.keys() == saved.keys(), "PEFT makes other tensors of the saved adapter"
    assert all(torch.equal(arrived[name], saved[name]) for name in saved)
    batch = pack([micro_batch(tenant.weights, [13, 9])], base.device)
    with torch.no_grad():
        expected = torch.cat(
            [theirs(input_ids=ids[None], use_cache=False).logits[0] for ids in batch.input_ids[0].split([13, 9])]
        )
    return float((base.logits(batch) - expected).abs().max() / expected.abs().max())
