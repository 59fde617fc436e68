"""The verbs at the door: whose jobs are whose, and what is sent from elsewhere. Jobs on paper, a real server."""

import hashlib
import io
import json
import os
import stat
import tarfile
import urllib.error
import urllib.request

import openapi_spec_validator
import pytest

from gpu_actor.contract.config import DatasetConfig, DataSource
from gpu_actor.contract.errors import ClusterUnavailableError, JobNotFoundError, LorayError
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.paths.roots import outside
from orchestrator.client import Client
from orchestrator.cluster.cluster_config import ClusterConfig
from orchestrator.endpoint.door_file import DoorFile, door_path, read_door_file, write_door_file
from orchestrator.endpoint.errors import RequestError
from orchestrator.endpoint.references import outputs_of, reach, resolved, written
from orchestrator.endpoint.tokens import digest_of
from orchestrator.endpoint.verbs import VERBS
from orchestrator.jobs.job import JobFileError, JobSpec
from orchestrator.jobs.owner import NotYoursError
from orchestrator.jobs.preflight import check_roots
from orchestrator.link.choose import find_link
from orchestrator.link.sending import send_jobs
from support.door import PaperOrchestrator, open_door


@pytest.fixture
def paper():
    orchestrator = PaperOrchestrator()
    orchestrator.add_job("annas", "anna", "/secret/annas")
    orchestrator.add_job("bobs", "bob", "/secret/bobs")
    return orchestrator


@pytest.fixture
def door(paper, tmp_path):
    with open_door(paper, tmp_path / "storage", max_upload=100_000) as door:
        door.tokens.given = {"anna": digest_of("annas-token")}
        yield door


@pytest.fixture
def anna(door):
    return Client(door.url, "annas-token")


@pytest.fixture
def operator(door, tmp_path):
    return Client(door.url, read_door_file(tmp_path / "storage").token)


def put(door, path, content, token="annas-token"):
    headers = {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(door.url + path, content, headers, method="PUT")
    try:
        with urllib.request.urlopen(request) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]["message"]


def test_only_the_owner_and_the_operator_steer_a_job_and_read_it(paper, anna, operator):
    for verb in ("cancel", "pause", "resume", "retry", "metrics", "events"):
        with pytest.raises(NotYoursError, match="belongs to bob"):
            getattr(anna, verb)("bobs")
    with pytest.raises(NotYoursError, match="only the operator"):
        anna.revoke_token("bob")
    assert paper.calls == []
    anna.cancel("annas")
    operator.retry("bobs", from_start=True)
    assert paper.calls == [("cancel", "id-annas"), ("retry", "id-bobs", True)]
    seen, all_of_it = anna.get_job("bobs"), operator.get_job("bobs")
    assert seen.keys() == all_of_it.keys()
    assert "/secret" not in json.dumps(seen)
    assert (seen["name"], seen["owner"], seen["spec"], seen["output_dir"]) == ("bobs", "bob", None, None)
    assert all_of_it["output_dir"] == "/secret/bobs"
    assert [view["output_dir"] for view in anna.list_jobs()] == ["/secret/annas", None]
    assert [view["output_dir"] for view in anna.get_jobs(["id-bobs", "id-annas"])] == [None, "/secret/annas"]
    with pytest.raises(JobNotFoundError, match="'nobody'"):
        anna.get_job("nobody")


def test_nobody_asks_folders_or_anothers_job(anna, operator, paper):
    asked = {"request_id": "r", "base_model": "tiny", "questions": ["?"]}
    for who in ({"folder": "/secret/bobs"}, {"job_id": "id-bobs", "folder": "/secret/bobs"}, {"chat_template": "/x"}):
        with pytest.raises(NotYoursError):
            anna.call("ask", {**asked, "answerers": [{"name": "x", **who}]})
    assert paper.calls == []
    mine = {"name": "x", "job_id": "id-annas", "folder": "/secret/annas"}
    anna.call("ask", {**asked, "answerers": [mine]})
    operator.call("ask", {**asked, "answerers": [{"name": "x", "folder": "/anywhere"}]})
    assert [call[0] for call in paper.calls] == ["ask", "ask"]


def test_an_error_keeps_its_kind_on_its_way(door, paper, anna, tmp_path, monkeypatch):
    async def refuse(*_):
        return {"accepted": [], "problems": [{"source": "job a", "field": "lora.r", "message": "is wrong"}]}

    async def fail(*_):
        raise ZeroDivisionError("oops")

    paper.submit = refuse
    with pytest.raises(JobFileError, match=r"job a: lora.r: is wrong"):
        anna.accept([])
    paper.timeline = fail
    with pytest.raises(LorayError, match="failed on this request"):
        anna.timeline([])

    async def refuse_request(*_):  # by an error that this process knows, and cannot make of a message alone
        raise RequestError(400, "names no jobs")

    paper.timeline = refuse_request
    with pytest.raises(LorayError, match="names no jobs"):
        anna.timeline([])
    with pytest.raises(ClusterUnavailableError, match="does not know the token"):
        Client(door.url, "wrong").list_jobs()
    with pytest.raises(ClusterUnavailableError, match="wants a token"):
        Client(door.url)
    with pytest.raises(ClusterUnavailableError, match="no orchestrator answers"):
        Client("http://127.0.0.1:1", "x")
    monkeypatch.setenv("LORAY_ADDRESS", door.url)
    monkeypatch.setenv("LORAY_TOKEN", "annas-token")
    assert Client().list_jobs()[0]["name"] == "annas"


def test_a_submission_whose_answer_is_lost_is_made_again_under_its_id(anna, paper, monkeypatch):
    send, sent = anna._link._send, []

    def losing(method, *arguments):
        answer = send(method, *arguments)
        sent.append(method)
        if sent == ["POST"]:
            raise ConnectionResetError("the connection broke")
        return answer

    monkeypatch.setattr(anna._link, "_send", losing)
    anna.accept([])
    (_, _, first, _), (_, _, second, _) = paper.calls
    assert (first, sent) == (second, ["POST", "POST"])
    sent.clear()
    with pytest.raises(ClusterUnavailableError, match="the connection broke"):
        anna.cancel("annas")  # which is not made again by itself


def test_the_door_of_this_machine_is_found_without_being_named(door, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAY_HOME", str(tmp_path / "storage"))
    link = find_link(None, None)
    assert (link.address, link.is_elsewhere) == (door.url, False)
    assert find_link(door.url, None).is_elsewhere  # named, it is taken for another machine's


def test_what_a_job_reads_is_sent_once_and_becomes_a_path_there(door, anna, tmp_path):
    data, other, adapter = tmp_path / "my data.jsonl", tmp_path / "other.jsonl", tmp_path / "start"
    data.write_text('{"text": "x"}\n')
    other.write_text('{"text": "y"}\n')
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    spec = JobSpec(
        name="a",
        base_model="org/model",
        dataset=DatasetConfig(path=str(data), mix=[DataSource(path=str(other), weight=2)]),
        lora=LoraConfig(init_adapter=str(adapter)),
        output_dir="/laptop/out",
    )
    (job,), (remark,) = send_jobs([spec], anna._link, "0123456789")
    assert remark.startswith("3 files sent")
    again, _ = send_jobs([spec], anna._link, "0123456789")
    assert again == [job]
    storage = tmp_path / "storage"
    found = resolved(job, storage, outputs_of("anna", str(storage / "outputs")))
    assert found["output_dir"] == str(storage / "outputs" / "anna" / "a-01234567")
    path = found["dataset"]["path"]
    assert path.endswith("/my_data.jsonl")
    with open(path) as sent:
        assert sent.read() == data.read_text()
    assert os.listdir(found["lora"]["init_adapter"]) == ["adapter_config.json"]
    assert found["dataset"]["mix"][0]["path"].endswith("/other.jsonl")
    config = ClusterConfig(storage=str(storage), http={"allowed_roots": ["/shared"]})
    spec = JobSpec.model_validate(found)
    assert check_roots([spec], reach("anna", config), written("anna", config)) == []
    (problem,) = check_roots([spec], reach("bea", config), written("bea", config))  # what was sent is anybody's to read
    assert problem.field == "output_dir"
    shared = spec.model_copy(update={"output_dir": "/shared/out"})  # what all may read nobody changes
    (problem,) = check_roots([shared], reach("anna", config), written("anna", config))
    assert problem.field == "output_dir"
    assert outside(found["output_dir"], ["/data"])
    assert not outside(found["output_dir"], ClusterConfig(storage=str(storage), allowed_roots=["/data"]).written_roots)
    for name in ("upload:" + "0" * 64 + "/../x", "output:../x", "upload:short/x", "/etc/passwd"):
        odd = {"dataset": {"path": name}, "output_dir": name}
        assert resolved(odd, storage, "/outputs") == odd  # no reference: the checks of jobs refuse it


def test_what_cannot_be_kept_is_refused_and_leaves_nothing(door, tmp_path):
    def path(content, name="x.jsonl"):
        return f"/api/files/{hashlib.sha256(content).hexdigest()}/{name}"

    assert put(door, path(b"abc"), b"abc") == 201
    assert put(door, path(b"abc"), b"abc") == 201
    assert put(door, path(b"abc", "y"), b"abd")[0] == 400
    assert put(door, path(b"abc", "%2e%2e%2fx"), b"abc")[0] == 400
    assert put(door, "/api/files/xyz/x", b"abc")[0] == 400
    large = b"0" * 100_001
    assert put(door, path(large), large) == (413, "x.jsonl has 100001 bytes; allowed: up to 100000 (http.max_upload)")
    assert put(door, path(b"abc"), b"abc", token="wrong")[0] == 401
    for name, kind in (("../out", tarfile.REGTYPE), ("link", tarfile.SYMTYPE)):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            tar.addfile(entry)
        status = put(door, path(packed.getvalue(), "folder") + "?folder=true", packed.getvalue())
        assert status[0] == 400
    assert put(door, path(b"no tar", "folder") + "?folder=true", b"no tar")[0] == 400
    kept = sorted(str(p.relative_to(tmp_path / "storage")) for p in (tmp_path / "storage").rglob("*") if p.is_file())
    assert kept == ["door/door.json", "uploads" + path(b"abc").removeprefix("/api/files")]


def test_the_file_with_the_token_is_for_this_user_alone_whatever_the_umask(tmp_path):
    for umask in (0o000, 0o777):
        before = os.umask(umask)
        try:
            write_door_file(tmp_path / str(umask), DoorFile("http://x:1", "t", 1))
        finally:
            os.umask(before)
        path = door_path(tmp_path / str(umask))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert read_door_file(tmp_path / str(umask)).token == "t"
    path.chmod(0o644)  # others may have read it, or written it
    assert read_door_file(tmp_path / str(umask)) is None


def test_the_description_is_valid_and_names_every_verb(door):
    request = urllib.request.Request(f"{door.url}/openapi.json", headers={"Authorization": "Bearer annas-token"})
    with urllib.request.urlopen(request) as response:
        document = json.load(response)
    openapi_spec_validator.validate(document)
    named = {operation["operationId"] for path in document["paths"].values() for operation in path.values()}
    assert set(VERBS) <= named


def test_everybody_hears_of_their_own_jobs_and_the_operator_of_all(paper, anna, operator):
    seen = {}
    for name, client in (("anna", anna), ("operator", operator)):
        client.recent_events(5)
        client.metrics("annas", most=50)
        seen[name] = {view["name"]: view["output_dir"] for view in client.overview()["live_jobs"]}
    told = [call for call in paper.calls if call[0] in ("recent_events", "overview")]
    both = [[("recent_events", 5, owner), ("overview", owner)] for owner in ("anna", "operator")]
    assert told == [*both[0], *both[1]]
    assert seen["anna"].keys() == seen["operator"].keys()
    assert [name for name, folder in seen["anna"].items() if folder is not None] == ["annas"]
    assert None not in seen["operator"].values()
    assert ("metrics", "id-annas", 0, 50) in paper.calls
