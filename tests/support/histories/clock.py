"""An event loop whose time is simulated, and lives that end between any two awaits."""

import asyncio
import contextvars
import selectors
import time
import types

EPOCH = 1_700_000_000.0  # Unix time at the start
_LIFE = contextvars.ContextVar("life", default=None)


class DeadlockError(Exception):
    """Nothing will ever happen any more."""


class Life:
    """Of a process; its tasks are never stepped again once it is over. Nothing of them is cleaned up: it is a SIGKILL.

    Attributes:
        steps: That its tasks still make; None: until somebody ends it.
        death: Done once it is over.
    """

    def __init__(self, loop, steps=None, on_death=lambda: None):
        self.steps, self.over, self._on_death = steps, False, on_death
        self.death = loop.create_future()
        self.kept = []  # what the dead have held: to be collected would run their `finally`

    def end(self):
        if not self.over:
            self.over = True
            self.death.set_result(None)
            self._on_death()

    def step(self):
        """Before each step of a task; whether it may be made."""
        if not self.over and self.steps is not None:
            self.steps -= 1
            if self.steps < 0:
                self.end()
        return not self.over


@types.coroutine
def _mortal(coroutine, life, loop):
    """Steps a coroutine for as long as its process lives."""
    step = lambda: coroutine.send(None)  # noqa: E731
    while True:
        if not life.step():
            life.kept.append(coroutine)
            while True:
                yield from loop.create_future()
        try:
            future = step()
        except StopIteration as end:
            return end.value
        try:
            yield future
            step = lambda: coroutine.send(None)  # noqa: E731
        except GeneratorExit:
            raise
        except BaseException as error:  # a cancellation
            step = lambda error=error: coroutine.throw(error)  # noqa: E731


class _NoWaiting(selectors.BaseSelector):
    """Waits by setting the clock forward."""

    def __init__(self):
        self.loop, self._keys = None, {}

    def register(self, fileobj, events, data=None):
        self._keys[fileobj] = selectors.SelectorKey(fileobj, fileobj, events, data)
        return self._keys[fileobj]

    def unregister(self, fileobj):
        return self._keys.pop(fileobj, None)

    def get_map(self):
        return self._keys

    def select(self, timeout=None):
        if timeout is None:
            raise DeadlockError("everybody waits for somebody")
        self.loop.now += max(0.0, timeout)
        return []


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits; what would run in a thread runs a little later, all of it in one step.

    Attributes:
        now: Seconds since its start.
    """

    def __init__(self, random):
        self.now, self._random = 0.0, random
        selector = _NoWaiting()
        selector.loop = self
        super().__init__(selector)
        self.set_task_factory(self._make_task)

    def time(self):
        return self.now

    def _make_task(self, loop, coroutine, **options):
        life = _LIFE.get()
        if life is None:
            return asyncio.Task(coroutine, loop=loop, **options)
        task = asyncio.Task(_mortal(coroutine, life, loop), loop=loop, **options)
        task._log_destroy_pending = False
        return task

    def run_in_executor(self, executor, function, *arguments):
        future, life = self.create_future(), _LIFE.get()

        def work():
            if future.cancelled() or (life is not None and life.over):
                return
            try:
                result = function(*arguments)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.call_later(self._random.uniform(0.0, 0.02), work)
        return future


def begin(loop, life, coroutine):
    """A task of a process, and all tasks that come of it."""
    context = contextvars.copy_context()
    context.run(_LIFE.set, life)
    return context.run(loop.create_task, coroutine)


def simulate_time(patch, loop, random):
    """Let everybody in this process read the loop's clock. Planning sometimes seems dear, so that plans are answered
    from as in a large cluster.
    """
    seconds = [0.0]
    dear = random.choice([0.0, 0.0, 0.2])

    def process_time():
        seconds[0] += dear
        return seconds[0]

    def sleep(seconds):
        loop.now += seconds

    patch.setattr(time, "sleep", sleep)
    patch.setattr(time, "time", lambda: EPOCH + loop.now)
    patch.setattr(time, "monotonic", lambda: 1000.0 + loop.now)
    patch.setattr(time, "process_time", process_time)
