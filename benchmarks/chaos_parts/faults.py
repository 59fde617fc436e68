"""What goes wrong. A fault does its harm and says what it was; where it lasts, it also says how it ends."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import socket
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from orchestrator.endpoint.door_file import read_door_file
from orchestrator.jobs.output_folder import newest_checkpoint

from .cluster import Cluster, send_signal

_FILE_BYTES = 4096  # that a file may have where a limit stands for a full disk


@dataclass(frozen=True)
class Harm:
    """A fault that was done.

    Attributes:
        words: What it was.
        undo: Ends it; None: it is over already.
        emptied: Jobs whose output folders were deleted.
    """

    words: str
    undo: Callable[[], None] | None = None
    emptied: tuple[str, ...] = ()


Jobs = Sequence[Mapping[str, Any]]
Fault = Callable[[Cluster, random.Random, Jobs], "Harm | None"]
"""Does its harm to a cluster whose given jobs are in training; None: there was nothing to harm."""


def kill_controller(cluster: Cluster, _: random.Random, __: Jobs) -> Harm | None:
    """SIGKILL of the orchestrator."""
    return _kill(cluster.processes("Controller"), "the orchestrator is killed")


def kill_actor(cluster: Cluster, draw: random.Random, _: Jobs) -> Harm | None:
    """SIGKILL of an actor."""
    actors = cluster.processes("GpuActor")
    return _kill([draw.choice(actors)] if actors else [], "an actor is killed")


def kill_both(cluster: Cluster, _: random.Random, __: Jobs) -> Harm | None:
    """SIGKILL of the orchestrator and of every actor at once."""
    processes = [*cluster.processes("Controller"), *cluster.processes("GpuActor")]
    return _kill(processes, "the orchestrator and all actors are killed")


def freeze(cluster: Cluster, draw: random.Random, _: Jobs) -> Harm | None:
    """SIGSTOP of the orchestrator or an actor, for a while."""
    kind = draw.choice(["Controller", "GpuActor", "GpuActor"])
    processes = cluster.processes(kind)
    if not processes:
        return None
    process = draw.choice(processes)
    send_signal(process, signal.SIGSTOP)
    return Harm(f"a {kind} is stopped", lambda: send_signal(process, signal.SIGCONT) and None)


def lose_node(cluster: Cluster, draw: random.Random, _: Jobs) -> Harm | None:
    """The second node dies, and another one comes."""
    whole = draw.random() < 0.5
    undo = cluster.lose_second_node(with_workers=whole)
    if undo is None:
        return None
    return Harm(f"the second node is killed{'' if whole else ', its workers are not'}", undo)


def lock_database(cluster: Cluster, _: random.Random, __: Jobs) -> Harm:
    """Somebody holds the job table."""
    other = sqlite3.connect(Path(cluster.config.storage) / "loray.db", isolation_level=None, timeout=30)
    other.execute("BEGIN EXCLUSIVE")
    return Harm("the database is locked", other.close)


def flip_bit(cluster: Cluster, draw: random.Random, jobs: Jobs) -> Harm | None:
    """A bit of a newest checkpoint turns over, and it is read again because the actors die."""
    for job in draw.sample(list(jobs), len(jobs)):
        folder = Path(job["output_dir"])
        newest = newest_checkpoint(str(folder))
        with contextlib.suppress(OSError, IndexError):  # it may just be replaced by a newer one
            file = draw.choice(sorted((folder / str(newest)).iterdir()))
            content = bytearray(file.read_bytes())
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            file.write_bytes(content)
            _kill(cluster.processes("GpuActor"), "")
            return Harm(f"a bit of {file.relative_to(cluster.outputs)} turns over, and all actors are killed")
    return None


def fill_disk(cluster: Cluster, _: random.Random, __: Jobs) -> Harm:
    """No output can be written: the disk is full, or where we have none of our own, actors may write small files."""
    if cluster.has_disk:
        ballast = cluster.outputs / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))
        return Harm("the disk is full", lambda: ballast.unlink(missing_ok=True))
    actors = cluster.processes("GpuActor")
    for actor in actors:
        _limit_files(actor, _FILE_BYTES)

    def lift() -> None:
        for actor in actors:
            _limit_files(actor, psutil.RLIM_INFINITY)

    return Harm("actors cannot write", lift)


def delete_output(_: Cluster, draw: random.Random, jobs: Jobs) -> Harm | None:
    """Somebody deletes the output folder of a job in training; of one that is just over nothing could come back."""
    far = [job for job in jobs if job["step"] < 0.7 * (job["total_steps"] or 0)]
    if not far:
        return None
    job = draw.choice(far)
    shutil.rmtree(job["output_dir"], ignore_errors=True)
    return Harm(f"the output folder of {job['name']} is deleted", emptied=(str(job["name"]),))


def hang_up(cluster: Cluster, draw: random.Random, _: Jobs) -> Harm | None:
    """A client sends half of a submission, or all of it, and is gone; another one will send the same again."""
    door = read_door_file(Path(cluster.config.storage))
    if door is None:
        return None
    parts = urlsplit(door.url)
    body = cluster.next_request
    head = f"POST /api/jobs HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {door.token}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    message = head.encode() + body
    with (
        contextlib.suppress(OSError),
        socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10) as client,
    ):
        client.sendall(message[: draw.choice([len(message), len(head) + 500, 30])])
    return Harm("a client hangs up")


def _kill(processes: Sequence[psutil.Process], words: str) -> Harm | None:
    killed = [send_signal(process, signal.SIGKILL) for process in processes]
    return Harm(words) if any(killed) else None


def _limit_files(process: psutil.Process, size: int) -> None:
    with contextlib.suppress(psutil.Error, OSError):
        hard = process.rlimit(psutil.RLIMIT_FSIZE)[1]
        process.rlimit(psutil.RLIMIT_FSIZE, (size, hard))


FAULTS: Mapping[Fault, int] = {
    kill_controller: 3,
    kill_actor: 4,
    kill_both: 1,
    freeze: 2,
    lose_node: 2,
    lock_database: 2,
    flip_bit: 3,
    fill_disk: 3,
    delete_output: 2,
    hang_up: 1,
}
"""Every fault, and how often it comes relative to the others."""


def plan(seed: int, count: int) -> list[list[Fault]]:
    """So many faults in groups of one or two that come together; each kind once before any comes again."""
    draw = random.Random(seed)
    kinds = list(FAULTS)
    first = draw.sample(kinds, len(kinds))[:count]
    rest = draw.choices(kinds, weights=list(FAULTS.values()), k=count - len(first))
    faults, groups = [*first, *rest], []
    while faults:
        size = 2 if len(faults) > 1 and draw.random() < 0.3 else 1
        groups.append([faults.pop(0) for _ in range(size)])
    return groups


def name_of(fault: Fault) -> str:
    """A fault in words."""
    return fault.__name__.replace("_", " ")
