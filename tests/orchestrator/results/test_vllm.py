"""The command for vLLM names what vLLM takes, with the rank that it needs, and refuses the rest with a way out."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gpu_actor.contract.errors import AdapterError, LorayError
from gpu_actor.model.base_model import BaseModel
from orchestrator.results.trained_job import TrainedJob
from orchestrator.results.vllm import vllm_command
from support.merging import merge, random_adapter
from support.vllm_checks import RefusedByVllm, updates

ENDINGS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
TAKEN = {
    "lora": ({"r": 4, "lora_alpha": 10}, "8"),
    "rslora": ({"r": 20, "use_rslora": True}, "32"),
    "pissa": ({"r": 6, "init_lora_weights": "pissa"}, "16"),  # twice the rank in its file
    "pissa-rslora": ({"r": 4, "init_lora_weights": "pissa", "use_rslora": True}, "8"),
    "orthogonal": ({"r": 4, "init_lora_weights": "orthogonal"}, "8"),
    "patterns": ({"r": 4, "rank_pattern": {r"1\.mlp.*": 33}, "alpha_pattern": {"q_proj": 3}}, "64"),
}
REFUSED = {
    "dora": ({"r": 4, "use_dora": True}, "vLLM does not support DoRA; merge it with `loray export dora --merged DIR`"),
    "vera": ({"peft_type": "VERA", "r": 8}, "vLLM has no VERA adapters; merge it with"),
    "large": ({"r": 513, "target_modules": ["q_proj"]}, "takes ranks up to 512, and this one has 513; merge it"),
}


@pytest.fixture(scope="module")
def base(tiny_base):
    return BaseModel.load(tiny_base)


def job(base, name, lora, folder):
    return TrainedJob(name, base.ref, str(random_adapter(base, lora, folder / name)))


@pytest.mark.parametrize("kind", TAKEN)
def test_what_vllm_takes_it_computes_as_the_merged_model_does(base, tmp_path, kind):
    lora, rank = TAKEN[kind]
    made = job(base, kind, lora, tmp_path)
    words = vllm_command([made], "latest")
    assert words == [
        *("vllm", "serve", base.ref, "--enable-lora", "--max-lora-rank", rank, "--max-loras", "1"),
        *("--lora-modules", f"{kind}={made.folder}"),
    ]
    plain = load_file(Path(base.ref) / "model.safetensors")
    merged = load_file(merge(base.ref, Path(made.folder), tmp_path / "merged") / "model.safetensors")
    for module, update in updates(made.folder, int(rank), ENDINGS).items():
        weight = f"{module}.weight"
        torch.testing.assert_close(plain[weight] + update, merged[weight], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_vllm_refuses_is_refused_with_the_way_out(base, tmp_path, kind):
    lora, message = REFUSED[kind]
    made = job(base, kind, lora, tmp_path)
    with pytest.raises(RefusedByVllm):
        updates(made.folder, 512, ENDINGS)
    with pytest.raises(AdapterError, match=message):
        vllm_command([made], "latest")


def test_several_jobs_share_one_server_and_one_base(base, tmp_path):
    one, two = (job(base, name, {"r": rank}, tmp_path) for name, rank in (("one", 4), ("two", 16)))
    assert vllm_command([one, two], "latest")[4:] == [
        *("--max-lora-rank", "16", "--max-loras", "2"),
        *("--lora-modules", f"one={one.folder}", f"two={two.folder}"),
    ]
    with pytest.raises(LorayError, match="'one' is given twice"):
        vllm_command([one, one], "latest")
    with pytest.raises(LorayError, match=r"one vLLM serves one base model, and these jobs have .*; give them apart"):
        vllm_command([one, TrainedJob("three", "some/other", one.folder)], "latest")
    training = tmp_path / "training"
    shutil.copytree(one.folder, training / "checkpoint-30")
    unfinished = TrainedJob("unfinished", base.ref, str(training))
    with pytest.raises(AdapterError, match=r"no adapter in .*; it has not ended, but --step N serves its checkpoint"):
        vllm_command([unfinished], "latest")
    assert vllm_command([unfinished], 30)[-1] == f"unfinished={training}/checkpoint-30"
