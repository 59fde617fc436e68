"""The plan of the house: rooms in an order, imports only downwards, no circle, private names stay at home."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest

from support.repository import ROOT

# A room may import itself and what stands below it. Functions that import late and imports for types alone count.
ROOMS = [
    "orchestrator.__main__",
    "orchestrator.cli",
    "orchestrator",
    "orchestrator.client",
    "orchestrator.control",
    "orchestrator.link",
    "orchestrator.storage",
    "orchestrator.endpoint",
    "orchestrator.asking",
    "orchestrator.results",
    "orchestrator.report",
    "orchestrator.reporting",
    "orchestrator.tracking",
    "orchestrator.knowledge",
    "orchestrator.owners",
    "orchestrator.cluster",
    "orchestrator.store",
    "orchestrator.jobs",
    "orchestrator.simulation",
    "orchestrator.scheduler",
    "orchestrator.validation",
    "orchestrator.terminal",
    "orchestrator.formatting",
    "orchestrator.priority",
    "orchestrator.version",
    "gpu_actor.actor",
    "gpu_actor.hosting",
    "gpu_actor.ask",
    "gpu_actor.export_chatglm",
    "gpu_actor.export",
    "gpu_actor.exporting",
    "gpu_actor.generation",
    "gpu_actor.encoding",
    "gpu_actor.training",
    "gpu_actor.model",
    "gpu_actor.operators",
    "gpu_actor.elementwise",
    "gpu_actor.losses",
    "gpu_actor.batch",
    "gpu_actor.adapters",
    "gpu_actor.loading",
    "gpu_actor.data",
    "gpu_actor.data.readers",
    "gpu_actor.device",
    "gpu_actor.storage",
    "gpu_actor.sandbox",
    "gpu_actor.paths",
    "gpu_actor.contract",
    "gpu_actor",
]
# What decides and what is agreed on is tested in milliseconds, so it knows neither Ray nor torch.
PURE = (
    "orchestrator.jobs",
    "orchestrator.simulation",
    "orchestrator.scheduler",
    "orchestrator.validation",
    "gpu_actor.paths",
    "gpu_actor.contract",
)


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TOPS = ("orchestrator", "gpu_actor", "tests", "docs")
PRIVATE = re.compile(r"_(?!_)")
FILES = {
    module_name(path): path for package in ("orchestrator", "gpu_actor") for path in (ROOT / package).rglob("*.py")
}


def room_of(module):
    """The room that a module lies in; a folder that is not on the list belongs to the one around it."""
    while module not in ROOMS:
        module = module.rpartition(".")[0]
    return module


def imports(module):
    """(imported module, name taken from it or None, line) of every import in a file."""
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{FILES[module]}:{node.lineno}: imports are written whole"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield (inside, None, node.lineno) if inside in FILES else (node.module, alias.name, node.lineno)


OURS = {module: [found for found in imports(module) if found[0] in FILES] for module in FILES}


def test_every_room_on_the_list_exists():
    assert [room for room in ROOMS if room not in FILES] == []


def test_no_two_files_import_each_other():
    try:
        list(TopologicalSorter({module: {to for to, *_ in found} for module, found in OURS.items()}).static_order())
    except CycleError as error:
        pytest.fail("files that import each other: " + " <- ".join(error.args[1]))


def test_rooms_import_only_what_stands_below_them():
    floor = {room: number for number, room in enumerate(ROOMS)}
    upward = [
        f"{FILES[module].relative_to(ROOT)}:{line} ({room_of(module)}) imports {to}"
        for module, found in OURS.items()
        for to, _, line in found
        if floor[room_of(to)] < floor[room_of(module)]
    ]
    assert upward == []


def test_no_private_name_leaves_its_room():
    strangers = [
        f"{FILES[module].relative_to(ROOT)}:{line} takes {name or to} from {to}"
        for module, found in OURS.items()
        for to, name, line in found
        if PRIVATE.match(name or to.rpartition(".")[2]) and room_of(to) != room_of(module)
    ]
    assert strangers == []


@pytest.mark.parametrize("room", PURE)
def test_pure_rooms_know_neither_ray_nor_torch(room):
    outside = [
        f"{FILES[module].relative_to(ROOT)}:{line} imports {to}"
        for module in FILES
        if module == room or module.startswith(f"{room}.")
        for to, _, line in imports(module)
        if to.partition(".")[0] in ("ray", "torch")
    ]
    assert outside == []


def test_nothing_that_the_orchestrator_imports_loads_torch():
    modules = [module for module in FILES if module.startswith("orchestrator") and not module.endswith("__main__")]
    modules = [module for module in modules if not re.fullmatch(r"orchestrator\.tracking\.\w+_run", module)]
    script = f"import importlib, sys\nfor m in {modules}: importlib.import_module(m)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_libraries_of_trackers_are_loaded_by_nobody_but_their_process():
    """`orchestrator.tracking.follower` loads the file of a tracker by its name."""
    assert [module for module, found in OURS.items() for to, *_ in found if re.search(r"tracking\.\w+_run$", to)] == []


def test_looking_the_orchestrator_up_loads_no_database():
    """Ray imports the class of an actor for its handle: each command would wait for what only the actor needs."""
    script = (
        "import orchestrator.cli.app, orchestrator.control.controller_actor, sys; print('sqlalchemy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_files_that_the_architecture_names_exist():
    named = re.findall(r"`([\w/]+(?:\.py|/))[`: ]", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    paths = [path for top in TOPS for path in (ROOT / top, *(ROOT / top).rglob("*"))]
    tree = [f"/{path.relative_to(ROOT)}" + "/" * path.is_dir() for path in paths]
    assert len(named) > 40
    assert [name for name in named if not any(path.endswith(f"/{name}") for path in tree)] == []
