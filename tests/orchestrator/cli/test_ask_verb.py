"""`loray ask` without a cluster: output folders answer by a process of this machine; mistakes are one line."""

import pytest

from gpu_actor.adapters.peft_files import save_adapter
from gpu_actor.contract.config import DatasetConfig
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.model.base_model import BaseModel
from gpu_actor.storage.remote_folder import RemoteFolder
from orchestrator.jobs.job import JobSpec
from support.command import Home
from support.s3_server import BUCKET, s3_server
from support.talking import save_talking_base


@pytest.fixture(scope="module")
def home():
    with Home() as home:
        yield home


@pytest.mark.slow
def test_output_folders_answer_beside_their_base(home, tmp_path):
    (tmp_path / "base").mkdir()
    ref = save_talking_base(tmp_path / "base")
    base = BaseModel.load(ref)
    for seed, name in enumerate(("pirate", "poet")):
        spec = JobSpec(name=name, base_model=ref, dataset=DatasetConfig(path="x"), output_dir=str(tmp_path / name))
        (tmp_path / name).mkdir()
        weights = base.new_adapter(LoraConfig(r=4, lora_alpha=64))
        weights.flat.data.normal_()
        save_adapter(tmp_path / name, weights, ref)
        if not seed:  # the other one is a plain adapter of PEFT
            (tmp_path / name / "job.yaml").write_text(spec.to_yaml())
    with s3_server() as s3:
        url = f"s3://{BUCKET}/pirate"
        for path in (tmp_path / "pirate").iterdir():
            RemoteFolder(url).put(path, path.name)
        asked = (tmp_path / "pirate", tmp_path / "poet", url, "Who are you?")
        told = home.run("ask", "--base", *asked, "--max-tokens", "6", **s3.environment)
        merged = home.run("export", url, "--merged", tmp_path / "merged", **s3.environment)
    assert told.returncode == 0, told.stderr
    assert merged.returncode == 0, merged.stderr
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    *_, here, there = told.stdout.split("[pirate, finished]\n")
    assert there.strip("\n") == here.partition("\n\n[")[0].strip("\n")
    told.stdout = told.stdout.rpartition("[pirate, finished]\n")[0]
    assert all(character.isprintable() or character in "\n\t" for character in told.stdout)
    names = ["[base model]", "[pirate, finished]", f"[{tmp_path / 'poet'}, finished]"]
    answers = []
    for name, after in zip(names, [*names[1:], None], strict=True):
        assert told.stdout.count(f"{name}\n") == 1
        answers.append(told.stdout.split(f"{name}\n")[1].split(f"\n\n{after}")[0].strip("\n"))
    assert len({*answers, ""}) == 4


def test_what_cannot_be_asked_is_said_in_one_line(home, tmp_path):
    for arguments, words in (
        (("pirate", "Who?"), "no cluster runs that knows such a job"),
        (("Who?",), "say who is asked, and what"),
        ((tmp_path, "Who?", "--step", "newest"), "give latest or best"),
        ((tmp_path, "Who?", "--top-p", "2"), "--top-p: 2.0"),
        ((tmp_path, "--file", tmp_path / "none"), "cannot be read"),
    ):
        done = home.call("ask", *arguments)
        assert done.returncode in (2, 3)
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1
