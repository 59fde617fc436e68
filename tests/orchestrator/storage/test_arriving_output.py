"""What comes from a node with other disks appears whole or not at all, and nowhere else."""

import hashlib

import pytest

from gpu_actor.contract.errors import InvalidJobError
from gpu_actor.storage.job_folder import StorageError
from orchestrator.jobs.output_folder import discard_checkpoints, newest_checkpoint
from orchestrator.storage.arriving_output import ArrivingOutput


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def send(output, name, *parts):
    offset = 0
    for part in parts:
        output.write(name, offset, part)
        offset += len(part)
    for _ in range(2):  # a call may come twice
        output.finish(name, sha256(b"".join(parts)))


def test_a_checkpoint_appears_with_its_checksums_and_an_adapter_file_by_file(tmp_path):
    folder = tmp_path / "out"
    output = ArrivingOutput(folder)
    send(output, "checkpoint-5/a", b"one", b"two")
    assert newest_checkpoint(str(folder)) is None
    assert output.names() == set()
    send(output, "checkpoint-5/checksums.json", b"{}")
    assert output.names() == {"checkpoint-5/a", "checkpoint-5/checksums.json"}
    assert (folder / "checkpoint-5" / "a").read_bytes() == b"onetwo"
    assert output.read("checkpoint-5/a", 3) == b"two"
    assert output.read("checkpoint-5/b", 0) is None

    output.write("metrics.jsonl", 0, b"longer than the next try\n")
    send(output, "metrics.jsonl", b"{}\n")
    assert (folder / "metrics.jsonl").read_bytes() == b"{}\n"
    output.write("adapter_model.safetensors", 0, b"hal")
    with pytest.raises(StorageError, match="did not arrive whole"):
        output.finish("adapter_model.safetensors", sha256(b"half"))
    assert not (folder / "adapter_model.safetensors").exists()

    output.remove(["checkpoint-5/checksums.json", "checkpoint-5/a"])
    assert newest_checkpoint(str(folder)) is None
    discard_checkpoints(str(folder))
    assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b/c", "a/../../x", ".ssh", "a/.x", "", "a//b", "a\0b"])
def test_no_other_place_is_reached(tmp_path, name):
    output = ArrivingOutput(tmp_path / "out")
    for call in (
        lambda: output.write(name, 0, b"x"),
        lambda: output.finish(name, sha256(b"x")),
        lambda: output.read(name, 0),
        lambda: output.remove([name]),
    ):
        with pytest.raises(InvalidJobError):
            call()
    assert list(tmp_path.iterdir()) == []
