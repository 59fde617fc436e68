"""The HTTP door of a real orchestrator, whose jobs train while OpenAI's own client asks them."""

import json
import os
import signal
import stat

import openai
import pytest

from support.cluster import checkpointed, wait_until
from support.command import JobFiles
from support.repository import python_example
from support.talking import save_talking_base
from support.tiny import token_rows

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600), pytest.mark.xdist_group("served")]

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def talker(served, tmp_path_factory):
    """A job that trains as long as the tests of this file run."""
    folder = tmp_path_factory.mktemp("talker")
    files = JobFiles(folder, save_talking_base(folder), token_rows(24))
    job = files.write("chatty", max_steps=1_000_000, save_steps=25, save_total_limit=400)
    assert served.run("submit", job).returncode == 0
    wait_until(checkpointed({"output_dir": folder / "out" / "chatty"}))  # to ask a process each time takes a core
    wait_until(lambda: served.json("show", "chatty")["step"] > 25)
    yield files
    served.run("cancel", "chatty")


def door_of(home):
    path = home.storage / "door" / "door.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    return json.loads(path.read_text())


def client_of(home, token=None):
    door = door_of(home)
    return openai.OpenAI(base_url=f"{door['url']}/v1", api_key=token or door["token"], max_retries=0)


def test_openais_client_asks_jobs_that_train_and_leaves_nothing_behind(served, talker):
    client = client_of(served)
    models = [model.id for model in client.models.list()]
    assert {talker.base, "chatty"} <= set(models)
    saved = next(name for name in models if name.startswith("chatty@"))
    settled = {"messages": HELLO, "max_tokens": 5, "temperature": 0}
    found = {name: client.chat.completions.create(model=name, **settled) for name in (talker.base, "chatty", saved)}
    assert {len(answer.choices[0].message.content) > 0 for answer in found.values()} == {True}
    chunks = list(client.chat.completions.create(model="chatty", messages=HELLO, max_tokens=9, n=2, stream=True))
    assert {chunk.choices[0].index for chunk in chunks} == {0, 1}
    left = client.chat.completions.create(model="chatty", messages=HELLO, max_tokens=450, stream=True, temperature=2)
    next(iter(left))
    left.close()
    wait_until(lambda: [actor["open_requests"] for actor in served.json("top")["actors"]] == [0])
    step = served.json("show", "chatty")["step"]
    wait_until(lambda: served.json("show", "chatty")["step"] > step)


def test_tokens_come_and_go_while_it_runs(served, talker):
    token = served.json("token", "add", "anna")["token"]
    assert token not in (served.storage / "loray.db").read_bytes().decode("latin-1")
    assert [model.id for model in client_of(served, token).models.list()] == [talker.base]
    twice = served.run("token", "add", "anna")
    assert (twice.returncode, "has a token already" in twice.stderr) == (2, True)
    assert [entry["owner"] for entry in served.json("token", "list")] == ["anna"]
    assert served.run("token", "revoke", "anna").returncode == 0
    with pytest.raises(openai.AuthenticationError):
        client_of(served, token).models.list()


def test_from_elsewhere_jobs_come_without_ray_and_are_their_owners(served, talker, tmp_path):
    token = served.json("token", "add", "bea")["token"]
    elsewhere = {"LORAY_ADDRESS": door_of(served)["url"], "LORAY_TOKEN": token, "LORAY_HOME": str(tmp_path)}
    done = served.run("submit", "--wait", talker.write("beas", max_steps=6), **elsewhere)
    assert done.returncode == 0, done.stderr
    view = served.json("show", "beas")
    assert (view["owner"], view["state"]) == ("bea", "SUCCEEDED")
    assert view["output_dir"].startswith(str(served.storage / "outputs" / "bea"))
    assert view["spec"]["dataset"]["path"].startswith(str(served.storage / "uploads"))
    assert served.run("logs", "beas", **elsewhere).returncode == 0
    for verb in ("cancel", "pause", "logs"):
        refused = served.run(verb, "chatty", **elsewhere)
        assert (refused.returncode, "belongs to operator" in refused.stderr) == (2, True)
    outside = served.run("submit", talker.write("nosy", max_steps=6), LORAY_HOME=str(tmp_path), LORAY_ADDRESS="")
    assert outside.returncode == 3  # no door is known there, and no cluster
    script = f"""
import sys
from orchestrator import Client, submit_job
client = Client({elsewhere["LORAY_ADDRESS"]!r}, {token!r})
print([view["name"] for view in client.list_jobs()], {{"ray", "torch", "numpy"}} & set(sys.modules))
print(client.job("beas").logs().count("step"), client.ask(["beas"], "Who?")[0].which)
"""
    names, asked = served.python(script).splitlines()
    assert names.endswith("'chatty', 'beas'] set()")  # after those that others had in the queue before
    assert asked.endswith("finished")
    assert served.run("token", "revoke", "bea").returncode == 0


def test_the_programs_that_the_pages_show_do_what_they_say(served, talker):
    door = door_of(served)
    saved = next(model.id for model in client_of(served).models.list() if model.id.startswith("chatty@"))

    def prints(page, **said):
        program = python_example(page)
        for words, instead in {"http://127.0.0.1:8267": door["url"], "loray_...": door["token"], **said}.items():
            program = program.replace(words, str(instead))
        return served.python(program, cwd=talker.folder, LORAY_TOKEN=door["token"]).splitlines()

    first = talker.write("first", max_steps=6, logging_steps=1)
    status, names = prints("README.md", **{"configs/jobs/pirate.yaml": first})
    assert ("SUCCEEDED {'step': 6" in status, names.endswith(", 'first']")) == (True, True)
    folder, names = prints("docs/http.md", **{"job.yaml": talker.write("second", max_steps=6)})
    assert folder.startswith(str(served.storage / "outputs" / "operator" / "second"))
    assert names.endswith("'first', 'second']")
    answers = prints("docs/evaluate.md", **{"pirate@40": saved, "pirate@80": "chatty", '"pirate"': '"first"'})
    for name in (saved, "chatty", "first"):
        assert any(line.startswith(f"{name} ") for line in answers)  # an answer may have lines of its own


def test_the_door_comes_back_with_the_orchestrator(served, talker):
    before = door_of(served)
    os.kill(before["pid"], signal.SIGKILL)
    wait_until(lambda: door_of(served)["pid"] != before["pid"])
    after = door_of(served)
    assert (after["url"], after["token"]) == (before["url"], before["token"])  # its clients go on
    client = client_of(served)

    def answers():
        try:
            return client.chat.completions.create(model="chatty", messages=HELLO, max_tokens=3).choices
        except (openai.APIConnectionError, openai.InternalServerError, openai.APIStatusError):
            return None  # it has not adopted its actor yet

    wait_until(answers)
