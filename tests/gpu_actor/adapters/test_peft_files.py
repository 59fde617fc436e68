"""What Loray writes, PEFT reads; what PEFT wrote, Loray starts from."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from gpu_actor.adapters.peft_files import read_adapter
from gpu_actor.adapters.shapes import adapter_bytes, adapter_parameters
from gpu_actor.adapters.start_check import check_adapter_fits
from gpu_actor.adapters.targets import plan_layers
from gpu_actor.batch.shared_batch import pack
from gpu_actor.contract.errors import AdapterError, InvalidJobError
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.model.base_model import BaseModel
from support.engine import make_spec, make_tenant, micro_batch, run_all
from support.oracle import adapter_tensors, largest_difference
from support.tiny import tiny_model, token_rows

CPU = torch.device("cpu")
TRAINING = {"max_steps": 6, "learning_rate": 5e-3, "per_device_train_batch_size": 2}


@pytest.fixture(scope="module")
def base(tiny_base):
    return BaseModel.load(tiny_base)


@pytest.mark.parametrize(
    "lora",
    [
        {"r": 8, "lora_alpha": 20},
        {"r": 3, "lora_alpha": 7.5, "target_modules": ["q_proj", "up_proj"], "use_rslora": True, "lora_dropout": 0.2},
        {"r": 4, "target_modules": r".*\.0\.self_attn\..*"},
    ],
)
def test_peft_loads_the_result_and_gives_the_engines_logits(tmp_path, base, tiny_base, lora):
    tenant = make_tenant(base, make_spec(tmp_path, "job", token_rows(9), lora, TRAINING))
    run_all(base, [tenant])
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), tenant.output_dir)
    sequence = micro_batch(None, [25]).sequences[0]
    ids = torch.tensor(sequence.astype("int64"))[None]
    theirs = loaded(ids).logits[0]
    ours = base.logits(pack([micro_batch(tenant.weights, [25])], CPU))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    with loaded.disable_adapter():
        assert not torch.allclose(theirs, loaded(ids).logits[0], atol=1e-2), "the adapter changed nothing"
    assert sorted(path.name for path in tenant.output_dir.iterdir() if path.is_file()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "checksums.json",
        "metrics.jsonl",
    ]


def peft_adapter(tiny_base, folder, **settings):
    torch.manual_seed(3)
    config = PeftLoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings)
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_base), config)
    wrapped.save_pretrained(folder)
    return str(folder)


def test_our_files_have_the_names_and_shapes_of_peft(tmp_path, base, tiny_base):
    tenant = make_tenant(base, make_spec(tmp_path, "job", token_rows(9), {"r": 4}, TRAINING))
    tenant.export()
    folder = peft_adapter(tiny_base, tmp_path / "peft", r=4, target_modules="all-linear")
    with (
        safe_open(tenant.output_dir / "adapter_model.safetensors", "pt") as ours,
        safe_open(f"{folder}/adapter_model.safetensors", "pt") as theirs,
    ):
        assert set(ours.keys()) == set(theirs.keys())
        assert all(ours.get_slice(k).get_shape() == theirs.get_slice(k).get_shape() for k in ours.keys())  # noqa: SIM118
    mine, peft = (
        json.loads((path / "adapter_config.json").read_text()) for path in (tenant.output_dir, tmp_path / "peft")
    )
    assert set(mine) <= set(peft)
    assert {key: mine[key] for key in ("r", "lora_alpha", "peft_type", "task_type", "bias", "use_rslora")} == {
        key: peft[key] for key in ("r", "lora_alpha", "peft_type", "task_type", "bias", "use_rslora")
    }
    assert {name.rsplit(".", 1)[-1] for name in peft["target_modules"]} == set(mine["target_modules"])


def test_a_job_starts_from_an_adapter_of_peft(tmp_path, base, tiny_base):
    folder = peft_adapter(tiny_base, tmp_path / "start", r=4, target_modules=["q_proj", "v_proj"])
    lora = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_adapter": folder}
    tenant = make_tenant(base, make_spec(tmp_path, "job", token_rows(9), lora, TRAINING))
    with safe_open(f"{folder}/adapter_model.safetensors", "pt") as saved:
        for (name, which), tensor in adapter_tensors(tenant.weights).items():
            assert torch.equal(tensor, saved.get_tensor(f"base_model.model.{name}.lora_{which}.weight"))
    start = adapter_tensors(tenant.weights)
    run_all(base, [tenant])
    assert largest_difference(start, adapter_tensors(tenant.weights)) > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 8}, r"has shape \[4, 64\], wanted \[8, 64\]"),
        ({"target_modules": ["q_proj", "k_proj"]}, "k_proj.lora_A.weight is missing"),
        ({"target_modules": ["q_proj"]}, "would not train"),
        ({"lora_alpha": 16}, "was trained with lora_alpha 8, this job has 16"),
    ],
)
def test_a_start_adapter_that_does_not_fit_is_refused_by_its_first_tensor(
    tmp_path, base, tiny_base, changes, message, tiny_description
):
    folder = peft_adapter(tiny_base, tmp_path / "start", r=4, target_modules=["q_proj", "v_proj"])
    lora = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_adapter": folder, **changes}
    spec = make_spec(tmp_path, "job", token_rows(9), lora, TRAINING)
    with pytest.raises(AdapterError, match=message):
        check_adapter_fits(tiny_description, spec.lora)
    with pytest.raises(AdapterError):
        make_tenant(base, spec)


@pytest.mark.slow
def test_a_start_adapter_that_is_damaged_is_named(tmp_path, tiny_base, tiny_description):
    folder = peft_adapter(tiny_base, tmp_path / "start", r=4, target_modules="all-linear")
    path = tmp_path / "start" / "adapter_model.safetensors"
    headers = (b'{"a": 1}', b'{"a": {}}', b'{"a": {"shape": 3}}', b'{"a": {"shape": [1e999]}}', b"[]", b"[" * 200_000)
    strange = [struct.pack("<Q", len(header)) + header for header in headers]
    for content in (b"", b"\xff" * 40, path.read_bytes()[:100], *strange):
        path.write_bytes(content)
        spec = make_spec(tmp_path, "job", token_rows(3), {"r": 4, "init_adapter": folder})
        with pytest.raises(AdapterError, match=r"adapter_model\.safetensors: not a readable safetensors file"):
            check_adapter_fits(tiny_description, spec.lora)


def test_an_adapter_that_is_only_a_pickle_is_named(base, tmp_path, tiny_base, tiny_description):
    folder = Path(peft_adapter(tiny_base, tmp_path / "start", r=4, target_modules="all-linear"))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    way_out = "adapter_model.bin is a pickle, which can run code when read; save the adapter again with PEFT"
    with pytest.raises(AdapterError, match=rf"lora\.init_adapter: .*{way_out}"):
        check_adapter_fits(tiny_description, LoraConfig(r=4, init_adapter=str(folder)))
    with pytest.raises(AdapterError, match=way_out):
        read_adapter(folder, base.new_adapter)


def test_a_base_is_described_without_its_weights(tiny_base, base, tiny_description):
    description = replace(tiny_description, activations=None)  # counted without weights only
    assert description == base.description.__class__.from_dict({**base.description.to_dict(), "ref": tiny_base})
    assert len(description.linears) == 14
    assert description.parameters == sum(p.numel() for p in tiny_model().parameters())
    assert [s.name for s in plan_layers(description, LoraConfig(target_modules=["down_proj"]))] == [
        f"model.layers.{i}.mlp.down_proj" for i in (0, 1)
    ]
    with pytest.raises(InvalidJobError, match="lm_head"):
        plan_layers(description, LoraConfig(target_modules=["lm_head"]))


def test_the_predicted_size_of_an_adapter_is_its_size(base):
    lora = LoraConfig(r=8, target_modules=["q_proj", "gate_proj"])
    weights = base.new_adapter(lora)
    assert adapter_parameters(base.description, lora) == weights.parameters
    assert adapter_bytes(base.description, lora) == 16 * weights.parameters
