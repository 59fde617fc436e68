"""The process that exports: merged folders, GGUF by a converter, the hub; each run is a process of its own."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from gpu_actor.contract.errors import AdapterError, LorayError
from gpu_actor.exporting.forms import export
from gpu_actor.exporting.requests import ExportRequest
from gpu_actor.model.base_model import BaseModel
from support.chatglm import train_sentencepiece
from support.fake_hub import running_hub
from support.merging import merged_by_peft, random_adapter
from support.repository import ROOT
from support.tiny import tiny_model

pytestmark = pytest.mark.slow
CONVERTER = """import json, sys
assert "broken" not in sys.argv[1], "this model is not known"
out = sys.argv[sys.argv.index("--outfile") + 1]
open(out, "w").write(json.dumps(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A base with a sentencepiece tokenizer, and the output folder of a job."""
    root = tmp_path_factory.mktemp("job")
    vocabulary = train_sentencepiece(root / "base").vocab_size()
    tiny_model(vocab_size=vocabulary).save_pretrained(root / "base")
    random_adapter(BaseModel.load(str(root / "base")), {"r": 4}, root / "out")
    random_adapter(BaseModel.load(str(root / "base")), {"r": 4, "use_dora": True}, root / "dora")
    rows = [{"step": step, "loss": 3.0 - step / 100} for step in range(1, 101)]
    rows += [{"step": 50, "eval_loss": 2.75}, {"step": 100, "eval_loss": 2.25}]
    (root / "out" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 10')
    return root


def wanted(job, form, target, folder="out", **fields):
    settings = {
        "dataset": {"path": "/home/somebody/secret/data.jsonl"},
        "lora": {"r": 4, "lora_dropout": 0.0},
        "training": {"learning_rate": 1e-3},
    }
    return ExportRequest(
        name="pirate",
        base_model=str(job / "base"),
        folder=str(job / folder),
        form=form,
        target=str(target),
        job=settings,
        **fields,
    )


def make(job, *arguments, **fields):
    """The same without a process of its own."""
    return export(wanted(job, *arguments, **fields), lambda *_: None)


def run(arguments, given, **variables):
    env = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, *arguments]
    return subprocess.run(command, input=given, env=env, cwd=ROOT, capture_output=True, text=True)


def in_a_process(request, **variables):
    """What `python -m gpu_actor.export` says last."""
    done = run(["-m", "gpu_actor.export"], request.model_dump_json(), **variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_merged_folder_has_its_card(job, tmp_path):
    made = in_a_process(wanted(job, "merged", tmp_path / "merged"))
    assert (made["place"], made["which"], made["layers"]) == (str(tmp_path / "merged"), "finished", 14)
    assert made["weight_bytes"] == (tmp_path / "merged" / "model.safetensors").stat().st_size
    assert made["peak_bytes"] > made["weight_bytes"]
    card = (tmp_path / "merged" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "- `data.jsonl`" in card
    assert not [word for word in ("secret", str(job), "vera") if word in card]
    assert "| `training.learning_rate` | `0.001` |" in card
    assert "| 100 | 2.0000 | 2.2500 |" in card
    with pytest.raises(AdapterError, match="no checkpoint of step 7 there; there is no checkpoint"):
        make(job, "merged", tmp_path / "x", step=7)


def test_the_converter_of_llama_cpp_is_run_or_the_commands_are_given(job, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    by_hand = f"python convert_hf_to_gguf.py MERGED --outtype auto --outfile {tmp_path / 'm.gguf'}"
    with pytest.raises(LorayError, match=rf"(?s)git clone --depth 1 https://github.com/ggml-org/.*{by_hand}"):
        make(job, "gguf", tmp_path / "m.gguf")
    (tmp_path / "llama.cpp").mkdir()
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path / "llama.cpp"))
    with pytest.raises(LorayError, match=r"has no convert_hf_to_gguf\.py; give a checkout"):
        make(job, "gguf", tmp_path / "m.gguf")
    for name in ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py"):
        (tmp_path / "llama.cpp" / name).write_text(CONVERTER)
    assert make(job, "gguf", tmp_path / "m.gguf").layers == 14
    assert json.loads((tmp_path / "m.gguf").read_text())[1:3] == ["--outtype", "f32"]
    with pytest.raises(LorayError, match="is there already; choose another file"):
        make(job, "gguf", tmp_path / "m.gguf")
    make(job, "ollama", tmp_path / "ollama")
    assert {path.name for path in (tmp_path / "ollama").iterdir()} == {"Modelfile", "README.md", "model.gguf"}
    make(job, "gguf-lora", tmp_path / "l.gguf")
    assert json.loads((tmp_path / "l.gguf").read_text())[0] == str(job / "out")
    with pytest.raises(AdapterError, match="is a DoRA adapter, and GGUF has LoRA's two matrices alone; give --gguf"):
        make(job, "gguf-lora", tmp_path / "d.gguf", "dora")
    with pytest.raises(LorayError, match=r"(?s)ended with 1; its last lines:.*this model is not known"):
        make(job, "gguf", tmp_path / "broken.gguf")
    assert {path.name for path in tmp_path.iterdir()} == {"llama.cpp", "ollama", "m.gguf", "l.gguf"}


@pytest.mark.skipif("LLAMA_CPP_DIR" not in os.environ, reason="LLAMA_CPP_DIR: needs a checkout of llama.cpp")
def test_the_real_converter_writes_what_transformers_reads_with_equal_logits(job, tmp_path):
    make(job, "gguf", tmp_path / "m.gguf")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        ours = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf")(ids).logits
        theirs = merged_by_peft(str(job / "base"), job / "out")(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    make(job, "gguf-lora", tmp_path / "l.gguf")


def test_an_adapter_is_pushed_in_one_commit(job, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(LorayError, match="--push needs a token of the hub that may write: set HF_TOKEN"):
        make(job, "push", "me/pirate")
    with running_hub() as (address, hub):
        there = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        script = f"from gpu_actor.exporting.hub import *; push_adapter(Path({str(job / 'out')!r}), 'me/pirate', '')"
        refused = run(["-c", script], "", **there, HF_TOKEN="hf_bad")  # without torch, which takes long to load
        assert "LorayError: --push me/pirate: the hub did not take it: " in refused.stderr
        made = in_a_process(wanted(job, "push", "me/pirate"), **there, HF_TOKEN="hf_good")
    assert made["place"] == f"{address}/me/pirate/commit/abc"
    assert hub.created.get("private") is True or hub.created["visibility"] == "private"
    assert hub.files.keys() == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert hub.files["adapter_model.safetensors"] == (job / "out" / "adapter_model.safetensors").read_bytes()
    assert b"library_name: peft" in hub.files["README.md"]
