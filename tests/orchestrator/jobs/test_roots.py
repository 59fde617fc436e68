"""Which places jobs may name: an explicit list, the default, hidden names, folders of the system, links."""

import os
import stat

import pytest

from gpu_actor.paths.private_files import private_file, private_folder
from gpu_actor.paths.roots import default_roots, outside
from orchestrator.cluster.address import write_cluster_file
from orchestrator.cluster.cluster_config import ClusterConfig
from orchestrator.store.storage_lock import hold
from orchestrator.store.store import Store


def test_the_default_is_where_one_works_the_home_and_the_storage(tmp_path, monkeypatch):
    home, here, storage = tmp_path / "home", tmp_path / "here", tmp_path / "home" / ".loray"
    for folder in (home, here, storage):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    roots = ClusterConfig(storage=str(storage)).roots
    assert roots == [str(here), str(home), str(storage)]
    for allowed in (here / "data.jsonl", home / "models" / "llama", storage / "outputs" / "x", here):
        assert outside(str(allowed), roots) == ""
    for path, word in {
        home / ".ssh" / "id_ed25519": "lies in .ssh",
        here / ".env": "lies in .env",
        tmp_path / "other": "outside the allowed folders",
        "/etc/passwd": "outside the allowed folders",
    }.items():
        assert word in outside(str(path), roots)
    monkeypatch.chdir("/")
    assert default_roots(str(storage)) == [str(home), str(storage)]  # a service starts there; it is no permission


@pytest.mark.parametrize("path", ["/etc/shadow", "/proc/self/environ", "/usr/bin/env", "/var/log/x"])
def test_a_folder_of_the_system_is_allowed_by_its_own_name_only(path):
    assert "belongs to the system" in outside(path, ["/"])
    assert outside(path, [os.path.dirname(os.path.realpath(path))]) == ""


def test_a_link_counts_as_what_it_leads_to(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to("/etc")
    assert "leads to /etc/passwd and is outside" in outside(str(tmp_path / "in" / "link" / "passwd"), [str(tmp_path)])
    (tmp_path / "door").symlink_to(tmp_path / "in")
    assert outside(str(tmp_path / "in" / "x"), [str(tmp_path / "door")]) == ""


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o177])
def test_what_holds_tokens_and_jobs_is_the_owners_alone(tmp_path, umask):
    storage = tmp_path / "storage"
    before = os.umask(umask)
    try:
        lock = hold(storage)
        store = Store(f"sqlite:///{storage}/loray.db")
        store.jobs()
        write_cluster_file(storage, "127.0.0.1:1", None, None)
        modes = {path.name: mode(path) for path in storage.iterdir() if path.name != "controller.lock"}
    finally:
        os.umask(before)
        lock.close()
    assert mode(storage) == 0o700
    assert {"loray.db", "loray.db-wal", "cluster.json"} <= set(modes)
    assert set(modes.values()) == {0o600}


def test_an_older_table_is_closed_to_others_and_a_link_is_no_table(tmp_path):
    table = tmp_path / "loray.db"
    table.write_bytes(b"")
    table.chmod(0o644)
    private_file(table)
    assert mode(table) == 0o600
    (tmp_path / "link").symlink_to(table)
    with pytest.raises(OSError, match="symbolic links"):
        private_file(tmp_path / "link")
    private_folder(tmp_path)  # somebody's own folder keeps its permissions
    assert mode(tmp_path) == 0o700
