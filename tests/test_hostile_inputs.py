"""Whatever is sent, as a job file, data, a checkpoint or a request: an answer in words, and nothing outside the roots.

`make test` tries a few hundred inputs, always the same; `make search` ten thousand new ones.
"""

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import threading
import types
from urllib.parse import quote, urlsplit

import pytest
import ray
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_actor.contract.config import DatasetConfig, TrainingConfig
from gpu_actor.contract.errors import BaseModelError, LorayError
from gpu_actor.data.dataset import load_dataset
from gpu_actor.data.samples import digest
from gpu_actor.training.checkpoint import load_checkpoint
from orchestrator.cluster.cluster_config import ClusterConfig
from orchestrator.control.controller import Controller
from orchestrator.endpoint.door_file import read_door_file
from orchestrator.endpoint.verbs import VERBS
from orchestrator.jobs.job_file import load_jobs
from orchestrator.jobs.preflight import check_files
from orchestrator.knowledge.base_catalog import BaseCatalog
from orchestrator.reporting.dashboard_rows import TaskRows
from support.engine import make_tenant, tiny_hooked
from support.house import NODES, describe
from support.interrupted import spec_in, started
from support.sample_files import TOKENIZER, VOCAB

pytestmark = pytest.mark.slow
EXAMPLES = settings(max_examples=250 if "LORAY_SEARCH" in os.environ else 60)

HOSTILE = [
    *(
        b"\0",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\xe2\x80\xae",
        b"\x1b[2J",
        b"\r\n",
        b"\n",
        b"'",
        b'"',
        b"\\",
        b"%s",
        b"%2e%2e/",
    ),
    *(b"../../../../etc/passwd", b"/etc/shadow", b"/dev/zero", b"/proc/self/mem", b"~", b"file:///etc", b"s3://x/y"),
    *(b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"9" * 400, b"0x10", b"1_0", b"2026-01-01"),
    *(b"{}", b"[]", b"[" * 3000, b'{"a":' * 3000, b"&a [*a, *a]", b"*a", b"<<: *a", b"!!python/name:os.system", b"---"),
    *(b'"\\ud800"', b'"\\u0000"', b"{{ 7 }}", b"{% for x in range(10**9) %}", b"(a+)+$", b"x" * 70_000, b", ", b": "),
]


@st.composite
def spoiled(draw, originals):
    """One of some texts, of which parts are lost, doubled, turned over, or something else."""
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 40)))
        match draw(st.sampled_from(["lose", "double", "turn", "put", "put", "cut"])):
            case "lose":
                del content[start:end]
            case "double":
                content[start:start] = content[start:end]
            case "turn" if start < len(content):
                content[start] ^= 1 << draw(st.integers(0, 7))
            case "put":
                content[start:end] = draw(st.sampled_from(HOSTILE))
            case "cut":
                del content[start:]
    return bytes(content)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder, of which only `allowed` may change."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "allowed").mkdir()
    (folder / "outside").mkdir()
    (folder / "outside" / "kept").write_text("kept")
    yield folder
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if "allowed" not in path.parts}
    assert found == {"outside", "outside/kept"}
    assert (folder / "outside" / "kept").read_text() == "kept"


# --- job files ---

JOB = {
    "name": "one",
    "base_model": "org/model",
    "dataset": {"path": "data.jsonl", "val_size": 0.1, "columns": {"prompt": "question"}},
    "lora": {"r": 8, "target_modules": "all-linear", "rank_pattern": {"q_proj": 4}},
    "training": {"learning_rate": 1e-4, "max_steps": 10, "seed": 1},
    "output_dir": "out/one",
    "grid": {"lora.r": [4, 8], "training.seed": [1, 2, 3]},
}
SEVERAL = {"defaults": JOB, "jobs": [{"name": "a", "output_dir": "a"}, {"name": "b", "queue": {"priority": 2}}]}
JOB_FILES = [dump(job).encode() for job in (JOB, SEVERAL) for dump in (yaml.safe_dump, json.dumps)]


@EXAMPLES
@given(content=spoiled(JOB_FILES), suffix=st.sampled_from(["yaml", "json"]))
def test_a_job_file_is_jobs_or_an_error_in_words(place, content, suffix):
    path = place / "allowed" / f"job.{suffix}"
    path.write_bytes(content)
    with contextlib.suppress(LorayError):
        assert all(str(problem.message) for problem in check_files(load_jobs([path])))


# --- data ---

RECORDS = [
    {"instruction": "Hello", "input": "", "output": "Hi"},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"prompt": "p", "chosen": "c", "rejected": "r"},
    {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]},
    {"text": "t"},
]
LINES = [b"\n".join(json.dumps(record).encode() for record in [one] * 3) for one in RECORDS]
DATA = [
    *((".jsonl", lines) for lines in LINES),
    *((".json", b"[" + lines.replace(b"\n", b",\n") + b"]") for lines in LINES),
    (".csv", b'instruction,output\nHello,Hi\n"a, b","c ""d"""\n'),
]


def parquet_file():
    import io

    import pyarrow
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": ["a", "b", "c"] * 5, "note": [None, "x", "y"] * 5}), file)
    return file.getvalue()


@EXAMPLES
@given(data=st.data(), kind=st.sampled_from([".jsonl", ".json", ".csv", ".parquet"]))
def test_data_are_samples_or_an_error_in_words(place, data, kind):
    originals = [parquet_file()] if kind == ".parquet" else [text for suffix, text in DATA if suffix == kind]
    path = place / "allowed" / f"data{kind}"
    path.write_bytes(data.draw(spoiled(originals)))
    training = TrainingConfig(objective=data.draw(st.sampled_from(["sft", "dpo"])))
    with contextlib.suppress(LorayError):
        assert len(load_dataset(DatasetConfig(path=str(path)), training, lambda: TOKENIZER, VOCAB).train)


# --- checkpoints ---


@pytest.fixture(scope="module")
def interrupted(place):
    """A base, a job that has checkpoints of the steps 2 and 4, and what its weights were there."""
    base = tiny_hooked()
    spec = spec_in(place / "allowed")
    _, tenant = started(base, spec, 5)
    folder, weights = place / "allowed" / "saved", {}
    shutil.copytree(spec.output_dir, folder)
    for step in (4, 2):
        again = make_tenant(base, spec, attempt=2)
        weights[again.progress.step] = again.weights.flat.detach().clone()
        assert again.progress.step == step
        again.files.close()
        shutil.rmtree(f"{spec.output_dir}/checkpoint-{step}")
    tenant.files.close()
    fresh = make_tenant(base, spec, attempt=3)
    yield folder, weights, fresh
    fresh.files.close()


@EXAMPLES
@given(data=st.data())
def test_a_checkpoint_is_whole_or_not_used(interrupted, data):
    folder, weights, fresh = interrupted
    out = folder.with_name("spoiled")
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(folder, out)
    files = sorted(path for path in out.rglob("checkpoint-*/*") if path.is_file())
    for path in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=3, unique=True)):
        content = path.read_bytes()
        match data.draw(st.sampled_from(["spoil", "spoil", "remove", "folder", "link"])):
            case "spoil":
                path.write_bytes(data.draw(spoiled([content])))
            case "remove":
                path.unlink()
            case "folder":
                path.unlink()
                path.mkdir()
            case "link":
                path.unlink()
                path.symlink_to("/dev/zero" if data.draw(st.booleans()) else out / "nowhere")
    with contextlib.suppress(LorayError):
        known = digest(fresh.data.train, fresh.data.val)
        progress, _ = load_checkpoint(out, fresh.weights, fresh.optimizer, fresh.scheduler, known)
        assert progress is None or torch.equal(fresh.weights.flat, weights[progress.step])


# --- requests ---


class DoorOfAController:
    """A real orchestrator behind its real door, in an event loop of its own, without what Ray does for it."""

    def __init__(self, place, patch):
        storage = place / "allowed" / "storage"
        roots = [str(place / "allowed")]
        self.config = ClusterConfig.model_validate(
            {"storage": str(storage), "allowed_roots": roots, "actors": [{}], "http": {"port": 0, "max_upload": 10_000}}
        )

        async def tick(_):
            return None

        async def known(_, ref):
            if ref != "org/model":
                raise BaseModelError(f"base_model: {ref}: is not there")
            return describe(ref)

        patch.setattr(Controller, "_tick", tick)
        patch.setattr(BaseCatalog, "_recall_or_describe", known)
        patch.setattr(ray, "nodes", lambda: NODES)
        patch.setattr(ray, "get_runtime_context", lambda: types.SimpleNamespace(get_node_id=lambda: "a" * 8))
        for name in ("accepted", "started", "over"):
            patch.setattr(TaskRows, name, lambda *_: None)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

        async def make():
            controller = Controller(self.config)
            await controller.ping()
            return controller

        self.controller = self.run(make())
        door = read_door_file(storage)
        self.address, self.token = urlsplit(door.url).netloc, door.token

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def send(self, method, path, body, headers):
        """The status and the body of the answer."""
        connection = http.client.HTTPConnection(self.address, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(method, path)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def close(self):
        async def end():
            self.controller._ticking.cancel()
            await self.controller._door.close()
            self.controller._store.close()

        self.run(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(60)


@pytest.fixture(scope="module")
def door(place):
    with pytest.MonkeyPatch.context() as patch:
        door = DoorOfAController(place, patch)
        yield door
        door.close()


def bodies(place):
    """The bodies of valid requests, by verb."""
    out = str(place / "allowed" / "out")
    job = {name: value for name, value in JOB.items() if name != "grid"} | {"output_dir": out}
    asked = {"request_id": "request-1", "base_model": "org/model", "questions": ["?"], "answerers": [{"name": "x"}]}
    return {
        "submit": {"jobs": [job], "request_id": "request-1"},
        "plan": {"jobs": [job], "policy": None},
        "timeline": {"ids": ["one"]},
        "ask": {"request": asked},
        "add_token": {"owner": "anna", "digest": "0" * 64},
        "retry": {"from_start": True},
        "v1": {"model": "one", "messages": [{"role": "user", "content": "x"}], "prompt": "x", "max_tokens": 3},
    }


WORDS = st.sampled_from(["one", "..", "%00", "a" * 300, "%2e%2e%2f%2e%2e", "%ff", "", "1", "-1", "é", "{}", "a b"])


@EXAMPLES
@given(data=st.data())
def test_every_request_has_an_answer_in_json(door, place, data):
    verb = data.draw(st.sampled_from([*VERBS.values(), None, None]))
    known = bodies(place)
    if verb is None:
        method, name = data.draw(st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"])), "v1"
        places = [
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/models",
            "/report",
            "/openapi.json",
            "/",
            "/api/files/",
        ]
        path = data.draw(st.sampled_from(places)) + data.draw(st.sampled_from(["", "0" * 64 + "/x", "../../x", "?a=b"]))
    else:
        method, name, path = verb.method, verb.name, verb.path
        for field in verb.in_path:
            path = path.replace(f"{{{field}}}", data.draw(WORDS))
        path += data.draw(st.sampled_from(["", "?skip=-1", "?most=1e9&skip=x", "?ref=two", "?after=%00"]))
    original = json.dumps(known.get(name, {})).encode()
    body = data.draw(st.one_of(st.just(original), spoiled([original]), st.sampled_from(HOSTILE)))
    token = data.draw(st.sampled_from([door.token, door.token, door.token, "", "wrong"]))
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    headers |= data.draw(
        st.sampled_from([{}, {"Content-Type": "text/plain"}, {"Content-Encoding": "gzip"}, {"X": "y" * 5000}])
    )
    status, answer = door.send(method, quote(path, safe="/?=&%{}.:"), body, headers)
    assert status != 500, answer
    if status >= 400 and method != "HEAD":
        said = json.loads(answer)
        assert said.get("problems") or said["error"]["message"]
    if token != door.token and "openapi" not in path:
        assert status in (400, 401, 404, 405, 413)
    assert door.send("GET", "/api/ping", b"", {"Authorization": f"Bearer {door.token}"})[0] == 200
