"""What an actor of another node gets: the files of the job that it was given, as long as it has that job."""

import asyncio
import hashlib
import json
import os
from pathlib import Path

import pytest

from gpu_actor.contract.errors import InvalidJobError
from gpu_actor.contract.head_files import (
    PART_BYTES,
    FileEntry,
    FinishOutput,
    ListInput,
    ListSaved,
    MarkOutput,
    ReadInput,
    ReadSaved,
    WriteOutput,
)
from gpu_actor.generation.saved_copies import on_this_machine
from gpu_actor.storage.head_folder import HeadFolder
from gpu_actor.storage.job_folder import StorageError
from orchestrator.storage.head_files import HeadFiles
from support.house import House


@pytest.fixture
def house(tmp_path):
    house = House(tmp_path / "state", allowed_roots=[str(tmp_path / "allowed")])
    house.host("actor")
    return house


class Link:
    """An actor's way to the head node, without Ray."""

    is_here = False

    def __init__(self, house):
        self._files = HeadFiles(house.store, house.config)

    def ask(self, request):
        return asyncio.run(self._files.answer(request))


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_an_actor_reaches_the_files_of_its_job_alone(house, tmp_path):
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (tmp_path / "secret").write_text("secret")
    data, link = allowed / "data.jsonl", allowed / "link.jsonl"
    data.write_bytes(b"{}\n")
    link.symlink_to(tmp_path / "secret")
    (allowed / "others.jsonl").write_bytes(b"{}\n")
    job_id = house.submit("job", data=data, out=str(allowed / "out"))
    leads_out = house.submit("leads-out", data=link, out=str(tmp_path / "elsewhere"))
    for each in (job_id, leads_out):
        assert house.store.assign(each, "actor", "boot").attempt == 1
    ask = Link(house).ask
    assert ask(ListInput(job_id, 1, str(data))) == [FileEntry("", sha256(b"{}\n"))]
    assert ask(ReadInput(job_id, 1, str(data), "", 1)) == b"}\n"
    ask(WriteOutput(job_id, 1, "metrics.jsonl", 0, b"row\n"))
    ask(FinishOutput(job_id, 1, "metrics.jsonl", sha256(b"row\n")))
    assert (allowed / "out" / "metrics.jsonl").read_bytes() == b"row\n"
    assert ask(ReadSaved(str(allowed / "out"), "metrics.jsonl", 0)) == b"row\n"

    for request in (
        ListInput(job_id, 1, str(allowed / "others.jsonl")),
        ListInput(job_id, 1, str(tmp_path / "secret")),
        ReadInput(job_id, 1, str(data), "../../secret", 0),
        ReadInput(job_id, 1, str(data), str(tmp_path / "secret"), 0),
        ReadInput(leads_out, 1, str(link), "", 0),
        MarkOutput(leads_out, 1),
        WriteOutput(leads_out, 1, "a", 0, b""),
        ListSaved(str(tmp_path)),
        ReadSaved(str(allowed), "../secret", 0),
    ):
        with pytest.raises(InvalidJobError):
            ask(request)
    for stale in (WriteOutput(job_id, 2, "a", 0, b""), ListInput("nobody", 1, str(data))):
        with pytest.raises(StorageError, match="has left this actor"):
            ask(stale)
    data.unlink()
    with pytest.raises(InvalidJobError, match=r"is not there any more.*loray retry job"):
        ask(ListInput(job_id, 1, str(data)))


@pytest.mark.parametrize("size", [0, 1, 2 * PART_BYTES, 2 * PART_BYTES + 1])
def test_a_file_of_any_size_travels_in_parts(house, tmp_path, size):
    job_id = house.submit("job", out=str(tmp_path / "allowed" / "out"))
    house.store.assign(job_id, "actor", "boot")
    folder = HeadFolder(Link(house), job_id, 1)
    (tmp_path / "here").write_bytes(os.urandom(size))
    folder.put(tmp_path / "here", "checkpoint-1/a")
    assert folder.names() == set()
    folder.write("checkpoint-1/checksums.json", b"{}")
    folder.get("checkpoint-1/a", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "here").read_bytes() == folder.read("checkpoint-1/a")
    assert folder.read("checkpoint-1/b") is None
    folder.remove(folder.names())
    assert folder.names() == set()


def test_a_finished_job_answers_on_another_node_by_a_copy(house, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAY_HOME", str(tmp_path / "home"))
    folder = tmp_path / "allowed" / "out"
    folder.mkdir(parents=True)
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}
    listed = json.dumps({name: sha256(content) for name, content in files.items()}).encode()
    for name, content in {**files, "checksums.json": listed}.items():
        (folder / name).write_bytes(content)
    place, step = on_this_machine(str(folder), "latest", Link(house))
    assert step == "latest"
    assert Path(place).is_relative_to(tmp_path / "home" / "cache")
    assert {name: (Path(place) / name).read_bytes() for name in files} == files
