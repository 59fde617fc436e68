"""Python programs that did not start the cluster: real processes, a real orchestrator, real training."""

import json
from types import SimpleNamespace

import pytest

from support.command import JobFiles
from support.talking import save_talking_base
from support.tiny import token_rows

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600), pytest.mark.xdist_group("served")]


@pytest.fixture
def home(served):
    return served


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_base):
    return JobFiles(tmp_path_factory.mktemp("client"), tiny_base, token_rows(24))


def script(home, files, body, **variables):
    """Runs a script in the folder of the data, with some job files at hand; returns the JSON that it printed."""
    head = "import json, ray\nfrom orchestrator import *\n"
    return json.loads(home.python(head + body, cwd=files.folder, **variables).splitlines()[-1])


def test_a_dict_becomes_an_adapter(home, files):
    job = files.spec("from-dict", max_steps=10, logging_steps=1)
    seen = script(
        home,
        files,
        f"""
job = submit_job({job!r})
done = job.wait(timeout=200)
print(json.dumps([done, job.status().value, job.metrics(), job.events(), job.logs(), repr(job)]))
""",
    )
    done, status, metrics, events, logs, text = seen
    assert status == done["state"] == "SUCCEEDED"
    assert done["output_dir"] == str(files.folder / "out" / "from-dict")  # relative to the current folder
    assert (files.folder / "out" / "from-dict" / "adapter_model.safetensors").exists()
    assert [row["step"] for row in metrics] == list(range(1, 11))
    assert len(logs.splitlines()) == len(metrics) + len(events)
    assert "from-dict" in text


def test_every_error_is_one_of_ours(home, files):
    long = files.spec("long", max_steps=1_000_000)
    broken = files.folder / "broken.jsonl"
    broken.write_text("{oops\n")
    several = files.folder / "several.json"
    both = [files.spec("x"), files.spec("y")]
    several.write_text(json.dumps({"jobs": both}))
    seen = script(
        home,
        files,
        f"""
from pathlib import Path
seen = {{}}
def trial(name, call):
    try:
        call()
    except LorayError as error:
        seen[name] = [type(error).__name__, str(error), [base.__name__ for base in type(error).__mro__]]
client = Client()
job = client.submit_job({long!r})
bad = client.submit_job({files.spec("bad", data="broken.jsonl")!r})
trial("unknown", lambda: client.job("nobody"))
trial("double", lambda: submit_job({long!r}))
trial("invalid", lambda: submit_job({{"name": "a b"}}))
trial("several", lambda: submit_job(Path("several.json")))
trial("slow", lambda: job.wait(timeout=0.3))
trial("failed", lambda: bad.wait(timeout=200))
trial("early", lambda: job.retry())
trial("elsewhere", lambda: Client("127.0.0.1:1"))
job.cancel()
trial("cancelled", lambda: job.wait(timeout=200))
seen["left"] = [job["name"] for job in client.list_jobs()]
print(json.dumps(seen))
""",
    )
    kinds = {name: value[0] for name, value in seen.items() if name != "left"}
    assert kinds == {
        "unknown": "JobNotFoundError",
        "double": "JobFileError",
        "invalid": "JobFileError",
        "several": "InvalidJobError",
        "slow": "WaitTimeoutError",
        "failed": "JobFailedError",
        "early": "IllegalTransitionError",
        "elsewhere": "ClusterUnavailableError",
        "cancelled": "JobFailedError",
    }
    assert {"LookupError", "LorayError"} <= set(seen["unknown"][2])
    assert "TimeoutError" in seen["slow"][2]
    assert "Client().submit" in seen["several"][1]
    assert "broken.jsonl:1" in seen["failed"][1]
    assert not {"x", "y", "a b"} & set(seen["left"])
    assert all(
        "Traceback" not in value[1] and "ray::" not in value[1] for value in seen.values() if value != seen["left"]
    )


def test_a_repeated_submit_adds_nothing(home, files):
    """The answer to a submit is lost after the orchestrator has accepted the job; the client asks again."""
    job = files.spec("once", max_steps=5)
    address = json.loads((home.storage / "cluster.json").read_text())["address"]
    seen = script(
        home,
        files,
        f"""
client = Client({address!r})
real, lost = ray.get, []
def losing(ref, **options):
    answer = real(ref, **options)
    if isinstance(answer, dict) and answer.get("accepted") and not lost:
        lost.append(answer["accepted"][0]["id"])
        raise ray.exceptions.ActorUnavailableError("the connection broke", b"0" * 16)
    return answer
ray.get = losing
job = client.submit_job({job!r})
job.wait(timeout=200)
print(json.dumps([lost, job.id, [view["name"] for view in client.list_jobs()]]))
""",
    )
    lost, job_id, names = seen
    assert lost == [job_id]
    assert names.count("once") == 1


def test_in_a_process_that_is_connected_to_ray_already(home, files):
    address = json.loads((home.storage / "cluster.json").read_text())["address"]
    seen = script(
        home,
        files,
        f"""
import os
ray.init(address={address!r}, namespace="another", log_to_driver=False)
@ray.remote(runtime_env={{"env_vars": {{"PYTHONPATH": os.environ["PYTHONPATH"]}}}})
def inside():
    return len(Client().list_jobs())
counts = [len(Client().list_jobs()), ray.get(inside.remote())]
try:
    Client("127.0.0.1:1")
except ClusterUnavailableError as error:
    print(json.dumps([counts, str(error)]))
""",
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # as docs/security.md says of a Ray that keeps to loopback
        RAY_AUTH_MODE="token",
    )
    counts, refusal = seen
    assert counts[0] == counts[1] > 0
    assert "already" in refusal


def test_jobs_are_asked_while_they_train_and_when_they_do_not(home, tmp_path):
    base = save_talking_base(tmp_path)
    talker = JobFiles(tmp_path, base, token_rows(24)).spec("talker", max_steps=100_000, save_steps=3)
    seen = script(
        home,
        SimpleNamespace(folder=tmp_path),
        f"""
import time
from gpu_actor.contract.questions import Sampling
short = {{"sampling": Sampling(max_tokens=5, temperature=2.0)}}
job = submit_job({talker!r})
while job.info()["step"] < 4:
    time.sleep(0.1)
found = job.client.ask(["talker", "out/talker"], "Who?", "What?", base=True, **short)
job.pause()
while job.status() is not JobState.PAUSED:
    time.sleep(0.1)
last = job.info()["step"]
paused = job.ask("Who?", **short)
job.cancel()
while job.status() is not JobState.CANCELLED:
    time.sleep(0.1)
gone = job.ask("Who?", **short)
print(json.dumps([[(a.name, a.which, a.question, a.error) for a in [*found, paused, gone]], last]))
""",
    )
    found, last = seen
    assert [(name, question) for name, _, question, _ in found[:6]] == [
        (name, question) for question in ("Who?", "What?") for name in ("base model", "talker", "talker")
    ]
    assert [error for *_, error in found[:7]] == [None] * 7
    live, checkpoint = (int(found[place][1].split()[1]) for place in (1, 2))
    assert live >= 4
    assert checkpoint % 3 == 0
    assert found[6][1] == f"step {last} of 100000"
    assert "neither a finished adapter nor a checkpoint" in found[7][3]


def test_a_killed_orchestrator_is_waited_for(home, files):
    seen = script(
        home,
        files,
        """
import os, signal
client = Client()
before = client.ping()["pid"]
names = [view["name"] for view in client.list_jobs()]
os.kill(before, signal.SIGKILL)
after = [view["name"] for view in client.list_jobs()]
print(json.dumps([before != client.ping()["pid"], names == after, client.cluster()["actors"][0]["state"]]))
""",
    )
    assert seen[:2] == [True, True]
