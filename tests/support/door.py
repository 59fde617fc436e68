"""The HTTP door before jobs on paper, or before a real desk with a tiny base model: all of it but Ray and training."""

import asyncio
import contextlib
import threading
import time

from gpu_actor.contract.errors import JobNotFoundError
from gpu_actor.contract.questions import AskRequest
from gpu_actor.generation.desk import AnswerDesk
from gpu_actor.loading.tokenizer import load_tokenizer
from gpu_actor.model.base_model import BaseModel
from orchestrator.cluster.cluster_config import HttpConfig
from orchestrator.endpoint.server import Door
from orchestrator.jobs.owner import OPERATOR

PATIENCE = 60.0


class PaperOrchestrator:
    """What is behind the door: jobs that are rows of a dictionary, and a list of what was called."""

    def __init__(self, base="tiny"):
        self.ref, self.jobs, self.calls, self.hosts = base, {}, [], True

    def add_job(self, name, owner, folder="/nowhere", state="SUCCEEDED"):
        spec = {"base_model": self.ref, "dataset": {"chat_template": None}}
        fields = {"id": f"id-{name}", "name": name, "owner": owner, "state": state, "spec": spec, "reason": None}
        fields |= dict.fromkeys(("priority", "started_at", "finished_at", "actor", "attempt", "retries", "step"), 0)
        fields |= dict.fromkeys(("epoch", "tokens", "tokens_per_s", "eta_s", "samples", "truncated", "dropped"), 0)
        fields |= dict.fromkeys(("shortened", "longest", "tokens_per_step", "total_steps", "forecast"), 0)
        self.jobs[name] = {**fields, "base_model": self.ref, "output_dir": str(folder), "submitted_at": 1.0}

    async def list_jobs(self, most_over=None, owner=OPERATOR):
        return [job for job in self.jobs.values() if owner in (OPERATOR, job["owner"])]

    async def get_job(self, ref, owner=None):
        for view in self.jobs.values():
            if ref in (view["id"], view["name"]):
                return view
        raise JobNotFoundError(f"no job has the id or name {ref!r}")

    async def get_jobs(self, ids):
        return [await self.get_job(job_id) for job_id in ids]

    async def overview(self, owner=OPERATOR):
        self.calls.append(("overview", owner))
        return {**await self.cluster(), "live_jobs": list(self.jobs.values()), "events": []}

    async def cluster(self):
        return {"actors": [{"base_model": self.ref, "state": "ready" if self.hosts else "loading"}]}

    def __getattr__(self, verb):
        if verb.startswith("_"):
            raise AttributeError(verb)

        async def call(*arguments):
            self.calls.append((verb, *arguments))
            return [] if verb in ("metrics", "events", "recent_events", "ask") else {"accepted": [], "problems": []}

        return call


class DeskOrchestrator(PaperOrchestrator):
    """One actor, which is a desk in a thread."""

    def __init__(self, base):
        super().__init__(base)
        self.base, self.stopped = BaseModel.load(base), False
        tokenizer = load_tokenizer(base)
        self.desk = AnswerDesk(self.base, lambda: tokenizer)
        self._lock = threading.Lock()
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self):
        while not self.stopped:
            with self._lock:
                self.desk.step()
            time.sleep(0.001 if self.desk.idle else 0)

    async def ask(self, request):
        whole = AskRequest.model_validate(request)
        if self.hosts:
            with self._lock:
                self.desk.open(whole, lambda _: None)
        return [{"actor": "desk" if self.hosts else None, "request": request, "numbers": (0,)}]

    async def answers(self, actor, request_id):
        return self.desk.answers(request_id)

    async def withdraw(self, actor, request_id):
        with self._lock:
            self.desk.withdraw(request_id)


@contextlib.contextmanager
def open_door(orchestrator, storage, **settings):
    """The door before an orchestrator, in an event loop in a thread; closed on leaving."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(PATIENCE)

    async def make():
        door = Door(orchestrator, HttpConfig(port=0, **settings), storage, str(storage / "outputs"))
        await door.tried()
        return door

    door = run(make())
    try:
        yield door
    finally:
        run(door.close())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE)
        loop.close()
