"""What the command line says when it refuses; no Ray is started here."""

import json
import socket
import subprocess
import sys

import pytest

from support.command import ROOT, Home


@pytest.fixture
def home():
    with Home() as home:
        yield home


@pytest.fixture
def job_file(tmp_path):
    """Writes a job file with changes; the data set exists and the base model does not."""
    (tmp_path / "data.jsonl").write_text('{"input_ids": [1, 2], "labels": [1, 2]}\n')

    def write(name="a.yaml", **changes):
        job = {
            "name": "a",
            "base_model": "./model",
            "dataset": {"path": "data.jsonl", "format": "tokens"},
            "output_dir": "out",
        }
        path = tmp_path / name
        path.write_text(json.dumps({**job, **changes}))
        return path

    return write


@pytest.fixture
def trainable(job_file, tiny_base):
    """A job file that can be planned and trained."""
    return job_file("trainable.yaml", base_model=tiny_base)


def refused(done, code=2):
    """The command told its error on stderr, in words and nothing else."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_typo_is_answered_by_name_before_anything_starts(home, job_file):
    text = refused(home.run("run", job_file(training={"learning_rat": 1e-4})))  # it would say that Ray starts
    assert "training.learning_rat" in text
    assert "learning_rate" in text
    assert "a.yaml" in text


def test_all_problems_of_all_files_come_together(home, job_file):
    first = job_file("one.yaml", lora={"r": 0}, training={"learning_rate": "fast"})
    second = job_file("two.yaml", queue={"priority": 1000})
    text = refused(home.call("submit", first, second))
    assert "3 problems, and no job was submitted" in text
    for fact in ("one.yaml: lora.r", "one.yaml: training.learning_rate", "two.yaml: queue.priority"):
        assert fact in text


def test_files_are_looked_at_before_ray_is_started(home, job_file):
    text = refused(home.call("run", job_file(dataset={"path": "nowhere.jsonl"})))
    assert "dataset.path" in text
    assert "nowhere.jsonl" in text
    assert "model" in text
    assert not home.storage.exists()


def test_a_missing_job_file(home):
    assert "nowhere.yaml" in refused(home.call("run", "nowhere.yaml"))


def test_a_bad_cluster_file(home, job_file, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "model.safetensors").write_bytes(b"")
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("storag: /tmp/x\n")
    assert "storage" in refused(home.call("serve", "--cluster", cluster))


@pytest.mark.parametrize("verb", [["list"], ["show", "a"], ["logs", "a"], ["cancel", "a"], ["top"]])
def test_without_a_cluster_every_verb_says_what_to_start(home, verb):
    text = refused(home.call(*verb), code=3)
    assert "no Loray cluster is running" in text
    assert "loray serve" in text


def test_nobody_answers_at_the_address(home):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    text = refused(home.run("list", "--address", f"127.0.0.1:{port}"), code=3)
    assert f"127.0.0.1:{port}" in text


def test_something_else_answers_at_the_address(home):
    with socket.create_server(("127.0.0.1", 0)) as other:
        text = refused(home.run("list", RAY_ADDRESS=f"127.0.0.1:{other.getsockname()[1]}"), code=3)
    assert "from RAY_ADDRESS" in text


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:8265", "set LORAY_TOKEN"),
        ("ray://127.0.0.1:10001", "Ray Client"),
        ("here", "not `host:port`"),
        ("127.0.0.1:99999", "not `host:port`"),
    ],
)
def test_addresses_of_another_kind(home, address, words):
    assert words in refused(home.call("list", "--address", address), code=3)


def test_a_stale_cluster_file_is_removed(home):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    home.storage.mkdir()
    path = home.storage / "cluster.json"
    with socket.create_server(("127.0.0.1", 0)) as alive:
        address = f"127.0.0.1:{alive.getsockname()[1]}"
        path.write_text(json.dumps({"address": address, "pid": gone.pid, "dashboard": None}))
        assert "no Loray cluster is running" in refused(home.call("list"), code=3)
    assert not path.exists()


@pytest.mark.slow
def test_nothing_heavy_is_imported_before_a_cluster_is_needed(home, job_file):
    bad = job_file(lora={"r": 0})
    script = (
        "import runpy, sys\n"
        "try:\n"
        "    runpy.run_module('orchestrator', run_name='__main__', alter_sys=True)\n"
        "except SystemExit:\n"
        "    pass\n"
        "print([name for name in ('ray', 'torch', 'transformers', 'sqlalchemy') if name in sys.modules])\n"
    )
    for arguments in (["--help"], ["--version"], ["schema"], ["run", str(bad)], ["list"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], env=home.env, cwd=ROOT, capture_output=True, text=True
        )
        assert done.stdout.splitlines()[-1] == "[]", (arguments, done.stderr)


def test_the_public_face_is_cheap():
    script = (
        "import sys, orchestrator\n"
        "names = [name for name in ('ray', 'torch', 'pydantic', 'rich') if name in sys.modules]\n"
        "for name in orchestrator.__all__: getattr(orchestrator, name)\n"
        "print(names, 'ray' in sys.modules, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[] False False"


def test_schema_is_a_json_schema(home):
    done = home.call("schema")
    assert done.returncode == 0
    assert "learning_rate" in done.stdout
    assert json.loads(done.stdout)["type"] == "object"


def test_version_is_that_of_the_distribution(home):
    project = (ROOT / "pyproject.toml").read_text()
    version = home.call("--version").stdout.strip().removeprefix("loray ")
    assert f'version = "{version}"' in project


def test_unknown_verbs_and_options_are_usage_errors(home):
    for arguments in (["explode"], ["list", "--colour"], ["run"]):
        done = home.call(*arguments)
        assert done.returncode == 2
        assert done.stdout == ""
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["run", "serve"])
def test_an_unknown_policy_is_refused_before_ray_is_started(home, job_file, verb):
    arguments = [job_file()] if verb == "run" else []
    text = refused(home.call(verb, *arguments, "--policy", "lifo"))
    assert "--policy: 'lifo' is no policy; allowed: fifo, fifo-4, fifo-memory, srpt, cosrpt" in text


@pytest.mark.parametrize("verb", ["run", "serve"])
def test_a_storage_that_cannot_be_made_is_told_in_words(home, tmp_path, verb, trainable):
    (tmp_path / "file").write_text("")
    (tmp_path / "cluster.yaml").write_text("storage: file/below\n")
    arguments = [trainable] if verb == "run" else []
    text = home.run(verb, *arguments, "--cluster", tmp_path / "cluster.yaml").stderr
    assert "error: the storage" in text
    assert "file/below cannot be used: Not a directory; give another `storage`" in text


def test_plan_for_a_cluster_file_and_for_an_address_are_two_things(home, tmp_path, trainable):
    (tmp_path / "cluster.yaml").write_text("scheduler: {policy: srpt}\n")
    text = refused(home.call("plan", trainable, "--cluster", tmp_path / "cluster.yaml", "--address", "127.0.0.1:6"))
    assert "--address: does not go with --cluster" in text
    assert "--policy: 'lifo' is no policy" in refused(home.call("plan", trainable, "--policy", "lifo"))


def test_plan_tells_of_a_job_that_can_never_run_by_its_exit_code(home, tmp_path, trainable):
    for limit, code in (("64GiB", 0), ("1MiB", 1)):
        (tmp_path / "cluster.yaml").write_text(f"actors: [{{memory_limit: {limit}}}]\n")
        options = ["--cluster", tmp_path / "cluster.yaml", "--policy", "fifo", "--json"]
        done = home.call("plan", trainable, *options)
        assert done.returncode == code, done.stderr
        assert [row["reason"] is None for row in json.loads(done.stdout)] == [code == 0]


def test_debug_shows_where(home):
    done = home.run("show", "a", LORAY_DEBUG="1")
    assert "Traceback" in done.stderr
