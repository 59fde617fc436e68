"""Every kind of adapter as a file: what Loray writes PEFT reads, and the other way round."""

import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from gpu_actor.adapters.peft_files import read_adapter
from gpu_actor.batch.shared_batch import pack
from gpu_actor.contract.errors import AdapterError
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.model.base_model import BaseModel
from support.engine import make_spec, make_tenant, micro_batch, run_all, tiny_hooked
from support.oracle import peft_config
from support.tiny import token_rows

CPU = torch.device("cpu")
TRAINING = {"max_steps": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 3}
KINDS = {
    "dora": {"r": 4, "lora_alpha": 10, "use_dora": True},
    "vera": {"peft_type": "VERA", "r": 32, "projection_prng_key": 3, "vera_dropout": 0.1},
    "vera-by-key": {"peft_type": "VERA", "r": 32, "save_projection": False, "target_modules": ["q_proj", "up_proj"]},
    "pissa": {"r": 4, "init_lora_weights": "pissa"},
    "pissa-rslora-patterns": {
        "r": 4,
        "init_lora_weights": "pissa_niter_4",
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"up_proj": 3},
    },
    "orthogonal": {"r": 4, "init_lora_weights": "orthogonal", "exclude_modules": ["k_proj"]},
    "patterns": {"r": 4, "rank_pattern": {r"1\.mlp.*": 2}, "alpha_pattern": {"q_proj": 3}, "layers_to_transform": [1]},
    "layers": {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers", "use_rslora": True},
}


@pytest.fixture(scope="module")
def base(tiny_base):
    return BaseModel.load(tiny_base)


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """One trained adapter of each kind, all from one run."""
    folder = tmp_path_factory.mktemp("kinds")
    tenants = {
        name: make_tenant(base, make_spec(folder, name, token_rows(9), lora, TRAINING)) for name, lora in KINDS.items()
    }
    run_all(base, list(tenants.values()), 2000)
    return tenants


def logits(base, weights):
    return base.logits(pack([micro_batch(weights, [25])], CPU))


def peft_logits(tiny_base, folder):
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), folder).eval()
    ids = torch.tensor(micro_batch(None, [25]).sequences[0].astype("int64"))[None]
    with torch.no_grad():
        return loaded(ids).logits[0]


@pytest.mark.parametrize("kind", KINDS)
def test_peft_and_ask_load_the_result_on_the_unchanged_base(base, tiny_base, trained, kind):
    tenant = trained[kind]
    expected = logits(base, tenant.weights)
    assert not torch.allclose(expected, logits(base, None), atol=1e-2), "the adapter changed nothing"
    torch.testing.assert_close(peft_logits(tiny_base, tenant.output_dir), expected, rtol=1e-4, atol=2e-5)
    again = read_adapter(tenant.output_dir, base.new_adapter)
    torch.testing.assert_close(logits(base, again), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_goes_on_from_the_result_of_another(base, tmp_path, trained, kind):
    tenant = trained[kind]
    saved = json.loads((tenant.output_dir / "adapter_config.json").read_text())
    names = ("r", "lora_alpha", "rank_pattern", "alpha_pattern")
    lora = KINDS[kind] | {name: saved[name] for name in names if name in saved}
    lora = {name: value for name, value in lora.items() if name != "init_lora_weights"}
    lora["init_adapter"] = str(tenant.output_dir)
    spec = make_spec(tmp_path, "next", token_rows(9), lora, TRAINING)
    torch.testing.assert_close(
        logits(base, make_tenant(base, spec).weights), logits(base, tenant.weights), rtol=1e-4, atol=2e-5
    )


def test_a_job_starts_from_peft_files_of_every_kind(base, tiny_base, tmp_path):
    for kind in ("dora", "vera", "vera-by-key", "patterns", "layers"):
        lora = LoraConfig(**KINDS[kind])
        config = peft_config(lora.model_copy(update={"target_modules": ["q_proj", "down_proj"], "alpha_pattern": {}}))
        config.rank_pattern = {"q_proj": 2} if kind == "patterns" else {}
        wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_base), config)
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
        folder = tmp_path / kind
        wrapped.save_pretrained(folder)
        fields = {**KINDS[kind], "target_modules": ["q_proj", "down_proj"], "init_adapter": str(folder)}
        fields |= {"alpha_pattern": {}, "rank_pattern": {"q_proj": 2}} if kind == "patterns" else {}
        tenant = make_tenant(base, make_spec(tmp_path, f"{kind}-job", token_rows(9), fields, TRAINING))
        torch.testing.assert_close(
            logits(base, tenant.weights), peft_logits(tiny_base, folder), rtol=1e-4, atol=2e-5, msg=kind
        )


def test_the_file_of_pissa_is_the_one_that_peft_converts(base, tiny_base, tmp_path, trained):
    """PEFT's own way: save the start, train, convert on saving; names, shapes, configuration and start values."""
    lora = LoraConfig(**KINDS["pissa"])
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_base), peft_config(lora))
    wrapped.peft_config["default"].init_lora_weights = True
    wrapped.save_pretrained(tmp_path / "start")
    wrapped.peft_config["default"].init_lora_weights = "pissa"
    wrapped.save_pretrained(tmp_path / "theirs", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    theirs = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    ours = load_file(trained["pissa"].output_dir / "adapter_model.safetensors")
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in theirs.items()}
    for name, tensor in theirs.items():
        frozen = (lambda t: t[4:]) if "lora_A" in name else (lambda t: t[:, 4:])
        torch.testing.assert_close(frozen(ours[name]), frozen(tensor), rtol=1e-5, atol=1e-6)
    mine, peft = (
        json.loads((folder / "adapter_config.json").read_text())
        for folder in (trained["pissa"].output_dir, tmp_path / "theirs")
    )
    for field in ("r", "lora_alpha", "init_lora_weights", "rank_pattern", "use_rslora"):
        assert mine[field] == peft[field]


@pytest.mark.parametrize("kind", ["dora", "vera", "layers"])
def test_the_configuration_has_only_fields_of_peft(trained, kind, tmp_path):
    config = peft_config(LoraConfig(**KINDS[kind]))
    config.save_pretrained(tmp_path)
    theirs = json.loads((tmp_path / "adapter_config.json").read_text())
    mine = json.loads((trained[kind].output_dir / "adapter_config.json").read_text())
    assert set(mine) <= set(theirs)
    for field in ("init_weights", "d_initial", "projection_prng_key", "use_dora", "layers_pattern", "bias"):
        assert mine.get(field) == theirs.get(field)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("vera", {"projection_prng_key": 4}, "was trained with projection_prng_key 3, this job has 4"),
        ("vera", {"peft_type": "LORA"}, "was trained with peft_type VERA, this job has LORA"),
        ("dora", {"use_dora": False}, "was trained with use_dora true, this job has false; set lora.use_dora: true"),
        ("patterns", {"alpha_pattern": {}}, "a lora_alpha of 3 at .*q_proj, this job has 8 there; set lora.alpha"),
        ("patterns", {"rank_pattern": {}}, r"has shape \[2, 64\], wanted \[4, 64\]"),
    ],
)
def test_a_start_adapter_of_another_kind_is_refused(base, tmp_path, trained, kind, change, message):
    lora = {**KINDS[kind], **change, "init_adapter": str(trained[kind].output_dir)}
    if lora.get("peft_type") == "LORA":
        lora = {name: value for name, value in lora.items() if name in ("r", "init_adapter")}
    with pytest.raises(AdapterError, match=message):
        make_tenant(base, make_spec(tmp_path, "job", token_rows(9), lora, TRAINING))


def test_ask_refuses_by_name_what_loray_does_not_have(base, tmp_path, trained):
    saved = json.loads((trained["dora"].output_dir / "adapter_config.json").read_text())
    for field, value in (("modules_to_save", ["lm_head"]), ("init_lora_weights", "olora"), ("peft_type", "IA3")):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**saved, field: value}))
        with pytest.raises(AdapterError, match=field):
            read_adapter(tmp_path, base.new_adapter)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**saved, "r": 9999}))
    with pytest.raises(AdapterError, match="r: Input should be less than or equal to 4096"):
        read_adapter(tmp_path, base.new_adapter)


def test_matrices_of_vera_that_the_key_does_not_make_are_not_dropped_in_silence(tmp_path):
    """A job that does not save them would go on with others after a pause, and give an adapter for others."""
    base = tiny_hooked()
    kind = {"peft_type": "VERA", "r": 8, "target_modules": ["q_proj", "up_proj"]}
    first = make_tenant(base, make_spec(tmp_path, "first", None, kind, TRAINING))
    run_all(base, [first])
    start = str(first.output_dir)
    by_key = make_spec(tmp_path, "by-key", None, {**kind, "save_projection": False, "init_adapter": start}, TRAINING)
    make_tenant(base, by_key)
    path = first.output_dir / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.vera_A"][0, 0] += 1
    save_file(tensors, path)
    (first.output_dir / "checksums.json").unlink()
    with pytest.raises(AdapterError, match=r"vera_A is not the matrix that projection_prng_key 0 makes.*true"):
        make_tenant(base, by_key)
    make_tenant(base, make_spec(tmp_path, "saved", None, {**kind, "init_adapter": start}, TRAINING))
