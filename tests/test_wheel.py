"""The wheel holds every module and every other file of both packages; an editable install would hide one left out."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.util import find_spec

import pytest

from support.repository import ROOT

PACKAGES = ("orchestrator", "gpu_actor")
NOT_INSTALLED = {
    f"orchestrator.tracking.{tracker}_run" for tracker in ("wandb", "mlflow", "trackio") if find_spec(tracker) is None
}
# Nothing of this environment's own start-up, where an editable install lies in wait: only the wheel and what it needs.
IMPORT_ALL = """
import importlib, sys
wheel, needed, *modules = sys.argv[1:]
sys.path[:0] = [wheel]
sys.path.append(needed)
for module in modules:
    assert importlib.import_module(module).__file__.startswith(wheel), module
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel that setuptools builds, without a network, of a copy of what the build reads."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    done = subprocess.run([sys.executable, "-c", build], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (folder / "dist").glob("loray-*-py3-none-any.whl")
    return zipfile.ZipFile(path)


def files_of(name):
    paths = (ROOT / name).rglob("*")
    return {str(path.relative_to(ROOT)) for path in paths if path.is_file() and "__pycache__" not in path.parts}


def test_the_wheel_holds_every_file_of_both_packages_and_nothing_else(wheel):
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == set().union(*map(files_of, PACKAGES))
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert b"loray = orchestrator.cli.app:main" in wheel.read(entry_points)


@pytest.mark.slow
def test_every_module_of_the_wheel_is_imported_without_the_checkout(wheel, tmp_path):
    wheel.extractall(tmp_path / "wheel")
    sources = (name for name in wheel.namelist() if name.endswith(".py") and not name.endswith("__main__.py"))
    modules = sorted(name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in sources)
    modules = [module for module in modules if module not in NOT_INSTALLED]
    needed = sysconfig.get_path("purelib")
    command = [sys.executable, "-I", "-S", "-B", "-c", IMPORT_ALL, tmp_path / "wheel", needed, *modules]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
