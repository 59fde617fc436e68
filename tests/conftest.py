"""Shared by all tests: small thread counts, no network, a tiny random base model on disk."""

import os
import shutil
import sys
import tempfile

# What a library keeps in someone's home (trackers do: runs of their own, telemetry, caches) is of this run alone. Some
# look up their places when they are imported, so this comes before all imports.
os.environ["HOME"] = tempfile.mkdtemp(prefix="loray-tests-home-")
os.environ.pop("XDG_CACHE_HOME", None)
os.environ.pop("XDG_CONFIG_HOME", None)
os.environ.pop("XDG_DATA_HOME", None)
os.environ.pop("HF_HOME", None)
os.environ.pop("TRACKIO_DIR", None)
os.environ.pop("WANDB_DIR", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait for each other must not spin on busy cores
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # a test that asks Ray for something must have started it, or it fails

import hypothesis
import pytest

# No test asserts how long anything takes: the machine may be busy. `make test` tries the same examples each time, so
# that a failure is about what was changed; `make search` looks for new ones.
_SEARCHES = "LORAY_SEARCH" in os.environ
hypothesis.settings.register_profile(
    "loray", deadline=None, derandomize=not _SEARCHES, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("loray")


def pytest_unconfigure():
    """Each worker of pytest-xdist had a home, and so had the process that leads them; none runs what `atexit` knows."""
    shutil.rmtree(os.environ["HOME"], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def loray_home(tmp_path_factory):
    """A folder of the tests' own, as their home is: nothing of the user's is read or written.

    Tests share it, and with it what is known of base models (`orchestrator.knowledge.description_files`): most of
    them, therefore, start as every run but the first does. Those of the command line have a new home each.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAY_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True)
def one_thread():
    """Of torch, whatever a test asked for: two that wait for each other on a busy machine take many times as long."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """Folder of a tiny random LLaMA model in fp32 safetensors."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    from support.tiny import tiny_model

    tiny_model().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_description(tiny_base):
    """What is known of it without its weights; to find that out takes more than a second."""
    from gpu_actor.model.describe import describe_base

    return describe_base(tiny_base)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config, items):
    """A worker of pytest-xdist takes a file at once, or all files of a group, which share a cluster.

    The longest come first, so that both workers end together. In a group, those that share an orchestrator come before
    those that start their own, so that it is started once, and its actor with it.
    """
    if not hasattr(config, "workerinput"):
        return
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}

    def rank(item):
        group = item.get_closest_marker("xdist_group")
        first = group is not None and group.args == ("ray_cluster",)
        in_cluster = item.get_closest_marker("cluster") is not None
        return (not first, not in_cluster, "orchestrator" not in item.fixturenames, item.path not in slow_files)

    items.sort(key=rank)
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


def pytest_addoption(parser):
    parser.addoption("--families-table", metavar="FILE", help="write the table of model families that the tests fill")


def pytest_configure(config):
    path = config.getoption("--families-table")
    if path and not hasattr(config, "workerinput"):
        from support.every_architecture import NOT_BUILT
        from support.family_table import FamilyTable

        config.pluginmanager.register(FamilyTable(path, NOT_BUILT))


@pytest.fixture
def record(request):
    """Notes for the table of model families: `record(column, value)`, of the test's own family or architecture."""
    from support.family_table import recorder

    parameters = request.node.callspec.params
    return recorder(request.node, parameters.get("family") or parameters["kind"])
