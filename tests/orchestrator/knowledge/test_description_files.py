"""Descriptions of base models from earlier runs: found again as long as they hold, and never after."""

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_actor.contract.description import Activations
from gpu_actor.contract.errors import BaseModelError
from gpu_actor.model.describe import describe_base
from gpu_actor.paths.locations import loray_home
from orchestrator.knowledge import description_files
from orchestrator.knowledge.base_catalog import BaseCatalog
from orchestrator.knowledge.description_files import recall, remember
from support.tiny import tiny_model


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LORAY_HOME", str(tmp_path / "home"))


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture
def described(base, tiny_description):
    return replace(tiny_description, ref=str(base))


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def filed():
    return list((loray_home() / "descriptions").glob("*"))


def test_what_was_described_is_found_again(base, described):
    assert recall(str(base)) is None
    remember(described)
    assert recall(str(base)) == described
    assert len(filed()) == 1  # nothing half-written is left


def test_a_model_of_another_name_is_another_model(base, tmp_path, described):
    """Of a ChatGLM with a rope_ratio the name can decide what it means, and whether it can be used at all."""
    remember(described)
    base.rename(tmp_path / "moved")
    assert recall(str(tmp_path / "moved")) is None
    assert recall(str(base)) is None


def test_names_that_are_no_unicode_are_names(base, tmp_path, described):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/b\xff")
    base.rename(odd)
    described = replace(described, ref=odd, activations=Activations(1.0))
    remember(described)
    assert recall(odd) == described


def test_a_changed_configuration_is_described_anew(base, described):
    remember(described)
    change(base / "config.json", num_hidden_layers=1)
    assert recall(str(base)) is None
    remember(describe_base(str(base)))
    assert recall(str(base)).num_layers == 1


def test_other_code_describes_anew(base, monkeypatch, described):
    remember(described)
    monkeypatch.setattr(description_files, "_code_digest", lambda: b"another release of transformers")
    assert recall(str(base)) is None


def test_code_is_the_engines_files_and_the_versions_below_it(monkeypatch):
    now = description_files._code_digest.__wrapped__()
    assert description_files._code_digest.__wrapped__() == now
    version = description_files.metadata.version
    for package in ("torch", "transformers", "gguf"):
        with monkeypatch.context() as patch:
            patch.setattr(description_files.metadata, "version", lambda p, of=package: "0" if p == of else version(p))
            assert description_files._code_digest.__wrapped__() != now
    with monkeypatch.context() as patch:
        read = Path.read_bytes
        patch.setattr(Path, "read_bytes", lambda p: b"" if p.name == "count_activations.py" else read(p))
        assert description_files._code_digest.__wrapped__() != now


def test_a_gguf_file_is_known_by_its_size_and_time(base, tmp_path, described):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    remember(replace(described, ref=str(path)))
    assert recall(str(path)).ref == str(path)
    os.utime(path, ns=(1, 1))
    assert recall(str(path)) is None


@pytest.mark.parametrize("damage", [lambda _: "", lambda text: text[:90], lambda text: text.replace('": 2', '": 3', 1)])
def test_a_damaged_file_is_made_anew(base, damage, described):
    remember(described)
    (path,) = filed()
    assert damage(path.read_text()) != path.read_text()
    path.write_text(damage(path.read_text()))
    assert recall(str(base)) is None
    remember(described)
    assert recall(str(base)) == described


def test_what_may_change_unseen_is_not_filed(base, described):
    remember(replace(described, ref="organisation/on-the-hub"))
    remember(replace(described, activations=None))
    change(base / "config.json", auto_map={"AutoConfig": "own.py"})
    remember(described, trust_remote_code=True)  # own.py may be another one tomorrow
    assert filed() == []
    remember(described)  # transformers' own class, whatever lies beside it
    assert recall(str(base)) == described
    assert recall(str(base), trust_remote_code=True) is None


def test_what_is_no_file_is_not_read(base, described):
    """To read a pipe is to wait for somebody who writes into it."""
    remember(described)
    os.mkfifo(base / "config-pipe.json")
    assert recall(str(base)) is not None


def test_a_home_that_cannot_be_written_is_no_error(base, described):
    loray_home().write_text("a file where a folder should be")
    remember(described)
    assert recall(str(base)) is None


def test_the_catalog_asks_no_process_for_what_is_filed(base, described):
    class Nobody:
        def remote(self, *_):
            raise AssertionError("a process is asked")

    catalog = BaseCatalog({})
    catalog._describe = Nobody()
    with pytest.raises(BaseModelError, match="a process is asked"):
        asyncio.run(catalog.get(str(base)))
    remember(described)
    assert asyncio.run(catalog.get(str(base))) == described


def test_a_model_that_changed_while_it_was_examined_is_not_filed(base):
    class Examiner:  # as `describe_within_limits`
        async def remote(self, ref, trust, *limits):
            described = describe_base(ref)
            change(base / "config.json", num_hidden_layers=1)
            return described

    catalog = BaseCatalog({})
    catalog._describe = Examiner()
    assert asyncio.run(catalog.get(str(base))).num_layers == 2
    assert recall(str(base)) is None
