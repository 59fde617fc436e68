"""What happens in the demo, and when: a queue of jobs, a late one, an urgent one, a wrong one, and questions."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table
from rich.text import Text

from demo.screen import Screen
from gpu_actor.contract.questions import Answer, Sampling
from orchestrator.cli.progress import LIVE_STATES, POLL_SECONDS
from orchestrator.cli.stop_signals import stop_signals
from orchestrator.client import Client, Job, JobView
from orchestrator.cluster.cluster_file import load_cluster_config
from orchestrator.control import launch
from orchestrator.formatting import plural, share, size
from orchestrator.jobs.job import JobSpec
from orchestrator.jobs.job_file import load_jobs

_ROOT = Path(__file__).parents[1]
_JOBS = _ROOT / "configs" / "jobs" / "demo.yaml"
_WRONG = _ROOT / "demo" / "wrong-rate.yaml"
_CLUSTER = _ROOT / "demo" / "cluster.yaml"
_STATE = _ROOT / "out" / "demo" / ".loray"  # a queue of its own: the demo meets nobody's jobs
_LATE, _URGENT, _ASKED = "fairy-tale", "telegram", "pirate-r16"
_COMES_LATE = "comes late, and joins when one of the four is done: {}"
_IS_URGENT = "is urgent, goes ahead of those who wait: {}"
_QUESTION = "What is the sun?"
_WORDS = 28  # most tokens of an answer


def play(screen: Screen) -> None:
    """Play it to the end.

    Raises:
        LorayError: Something could not be started, submitted or asked.
    """
    screen.say("starting Ray, and an actor that will hold SmolLM2-135M-Instruct once ...")
    config = load_cluster_config(_CLUSTER).model_copy(update={"storage": str(_STATE)})
    with launch.start_local(config), stop_signals():
        started = screen.seconds
        story = _Story(screen, Client())
        story.train()
        trained = screen.seconds
        story.ask_all()
        asked = screen.seconds
    screen.say(
        f"Ray up after {started:.0f} s, jobs done after {trained:.0f} s, all answers after {asked:.0f} s, "
        f"all ended after {screen.seconds:.0f} s"
    )
    screen.show(
        Text.assemble("Next: put your data into configs/jobs/pirate.yaml, then ", ("loray run", "bold"), " it.")
    )


@dataclass
class _Story:
    """What has happened so far."""

    screen: Screen
    client: Client
    jobs: dict[str, Job] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)
    views: dict[str, JobView] = field(default_factory=dict)
    most_shared: int = 0  # adapters in one shared batch
    memory: int = 0  # the actor's largest, in bytes

    def train(self) -> None:
        """Submit the jobs, some of them later, and follow all to their ends."""
        specs = {spec.name: spec for spec in load_jobs([_WRONG, _JOBS])}
        late, urgent = specs.pop(_LATE), specs.pop(_URGENT)
        self._submit(list(specs.values()), "in the queue: {}")
        self.screen.say(
            "their steps are short: four fit into one shared batch, and the demo's policy, fifo-4, keeps four at it; "
            "the default shares where that shortens the mean turnaround"
        )
        with ThreadPoolExecutor(1) as asker:
            while True:
                self._look()
                part = self._done(_ASKED)
                self._once(part > 0, "asked early", lambda: self._ask(asker, base=True))
                self._once(part > 0.15, "late", lambda: self._submit([late], _COMES_LATE))
                self._once(part > 0.3, "urgent", lambda: self._submit([_first(urgent)], _IS_URGENT))
                self._once(part > 0.45, "asked half way", lambda: self._ask(asker))
                self._once(part == 1.0, "asked at last", lambda: self._ask(asker))
                self._tell_failures()
                if not any(view["state"] in LIVE_STATES for view in self.views.values()):
                    break
                time.sleep(POLL_SECONDS)
        done = [view for view in self.views.values() if view["state"] == "SUCCEEDED"]
        self.screen.clear()
        self.screen.say(
            f"{plural(len(done), 'adapter')} trained on one copy of the base, up to {self.most_shared} in one step; "
            f"the actor's memory was {size(self.memory)} at its largest"
        )

    def ask_all(self) -> None:
        """The base model and every finished adapter answer one question, side by side."""
        names = [name for name, view in self.views.items() if view["state"] == "SUCCEEDED"]
        found = self.client.ask(
            [self.jobs[name].id for name in names], _QUESTION, base=True, sampling=Sampling(max_tokens=_WORDS)
        )
        table = Table(title=_QUESTION, box=None, pad_edge=False, title_justify="left", title_style="bold")
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(overflow="fold")
        for answer in found:
            table.add_row(answer.name, Text(_said(answer)))
        self.screen.show(table)

    def _submit(self, specs: list[JobSpec], how: str) -> None:
        for job in self.client.submit(specs):
            self.jobs[job.name] = job
        self.screen.say(how.format(", ".join(spec.name for spec in specs)))

    def _look(self) -> None:
        views = self.client.get_jobs([job.id for job in self.jobs.values()])
        self.views = {view["name"]: view for view in views}
        actors = self.client.cluster()["actors"]
        for actor in actors:
            self.most_shared = max(self.most_shared, actor["batch_adapters"])
            self.memory = max(self.memory, actor["memory_peak"] or 0)
        self.screen.update(views, actors)

    def _done(self, name: str) -> float:
        """The share of a job that is done; 1 once it is over in any way, so that nothing waits for it."""
        view = self.views[name]
        return share(view) if view["state"] in LIVE_STATES else 1.0

    def _once(self, moment: bool, name: str, act: Callable[[], None]) -> None:
        if moment and name not in self.told:
            self.told.add(name)
            act()

    def _ask(self, asker: ThreadPoolExecutor, *, base: bool = False) -> None:
        """Ask a job while it trains, and the base model too if wanted; the answer is told when it is there."""
        sampling = Sampling(max_tokens=_WORDS)
        asked = asker.submit(self.client.ask, [self.jobs[_ASKED].id], _QUESTION, base=base, sampling=sampling)
        asked.add_done_callback(self._tell_answers)

    def _tell_answers(self, answers: Future[list[Answer]]) -> None:
        for answer in answers.result():
            who = f"{answer.name}, {answer.which}" if answer.which else answer.name
            self.screen.say(Text.assemble((f"{who}: ", "cyan"), _said(answer)))

    def _tell_failures(self) -> None:
        for name, view in self.views.items():
            if view["state"] == "FAILED" and name not in self.told:
                self.told.add(name)
                self.screen.say(Text(f"{name} fails, alone: {view['reason']}", "red"))


def _first(spec: JobSpec) -> JobSpec:
    """The same job before all others."""
    return spec.model_copy(update={"queue": spec.queue.model_copy(update={"priority": 10})})


def _said(answer: Answer) -> str:
    """An answer on one line, without what a terminal would obey."""
    text = answer.error or answer.text
    return "".join(character for character in " ".join(text.split()) if character.isprintable())
