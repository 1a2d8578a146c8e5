"""Simulated time, processes and threads: everything happens one after the other, in an order that a seed decides.

A thread is a greenlet. It runs until it waits for something; then the world goes on to whatever comes next in simulated
time. So a history of hours takes milliseconds, and the same seed makes the same one.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from random import Random
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet

from celery_pgleader.postgres import GLANCE

BEGINNING = datetime(2026, 3, 1, tzinfo=timezone.utc)
# Between one thread letting go of something and another going on with it, at most.
HANDOVER = 0.0005


class World:
    """All that there is in one history."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        """Begin at zero, with nothing in it."""
        global _present  # noqa: PLW0603 - as there is one time
        _present = self
        self.random = Random(seed)
        self.now = 0.0
        self.over = False
        self.processes: list[Process] = []
        self.process: Process = Process(self, "nobody")
        self.thread: Thread | None = None
        # Postgres; set by whoever puts the world together.
        self.server: Any = None
        self.hub = getcurrent()
        self.violations: list[str] = []
        # Asked at each operation whether a fault waits for it: by whom it is done, what it is, and how far it has got.
        # They return for how many seconds it is held up there.
        self.traps: list[Callable[[Process, str, str], float | None]] = []
        self.trace: list[str] | None = [] if trace else None
        self._agenda: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._number = 0

    def at(self, when: float, call: Callable[..., object], *args: Any) -> None:
        self._number += 1
        heapq.heappush(self._agenda, (when, self._number, call, args))

    def soon(self, call: Callable[..., object], *args: Any) -> None:
        self.at(self.now + self.random.random() * HANDOVER, call, *args)

    def run(self, until: float) -> None:
        agenda = self._agenda
        while agenda and agenda[0][0] <= until and not self.violations:
            self.now, _, call, args = heapq.heappop(agenda)
            call(*args)
        self.now = max(self.now, until)

    def end(self) -> None:
        self.over = True
        for process in self.processes:
            for thread in process.threads:
                thread.end()

    def violated(self, what: str) -> None:
        self.violations.append(what)
        self.tell("VIOLATED", what)

    def tell(self, who: object, what: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.now:10.4f}  {who!s:<14} {what}")


# There is always one, so that whatever asks for the time can be made before a history begins.
_present: World


def world() -> World:
    """Return the world."""
    return _present


@dataclass(eq=False)
class Process:
    """One process, with clocks of its own."""

    world: World
    name: str
    # How fast its monotonic clock goes, and what it showed in the beginning; by how much the other is ahead.
    rate: float = 1.0
    boot: float = 0.0
    wall: float = 0.0
    dead: bool = False
    paused_until: float = 0.0
    # Until when nothing comes through between it and a peer.
    cut_until: dict[str, float] = field(default_factory=dict)
    # Everything takes so much longer for a while.
    lag: float = 0.0
    lag_until: float = 0.0
    # Until when it was held up, or cut off, or will be.
    disturbed_until: float = -1.0
    threads: list[Thread] = field(default_factory=list)
    # Its connections, which the operating system closes when it dies.
    sessions: list[Any] = field(default_factory=list)
    # Its trust page, and its main loop, if it has them.
    page: Any = None
    worker: Any = None

    def __str__(self) -> str:
        """Return its name."""
        return self.name

    def monotonic(self) -> float:
        return self.boot + self.world.now * self.rate

    def time(self) -> float:
        return BEGINNING.timestamp() + self.world.now + self.wall

    def kill(self) -> None:
        """End it as `kill -9` does."""
        if not self.dead:
            self.dead = True
            self.disturbed_until = float("inf")
            self.world.tell(self, "is killed")
            for session in self.sessions:
                session.vanish()

    def pause(self, seconds: float) -> None:
        """Stop it, as SIGSTOP does, or a virtual machine that is moved."""
        self.world.tell(self, f"is stopped for {seconds:.3f} s")
        self.paused_until = max(self.paused_until, self.world.now + seconds)

    def step(self, name: str) -> None:
        """Be about to do something that others can notice."""
        if self.world.traps:
            self.trapped(name, "before")
            if self.dead or self.paused_until > self.world.now:
                running().park(self.world.now)

    def trapped(self, name: str, stage: str) -> float:
        """Have the faults happen that wait for an operation to get so far; return for how long it is held up."""
        held_up = 0.0
        for trap in tuple(self.world.traps):
            seconds = trap(self, name, stage)
            if seconds is not None:
                self.world.traps.remove(trap)
                held_up += seconds
        return held_up

    def disturb(self, until: float) -> None:
        self.disturbed_until = max(self.disturbed_until, until)

    def reaches(self, peer: str) -> float:
        """Return when something that is sent now arrives at a peer, or from it."""
        world = self.world
        latency = 0.0002 + world.random.random() * 0.0015 + (self.lag if world.now < self.lag_until else 0.0)
        return max(world.now, self.cut_until.get(peer, 0.0)) + latency

    def run(self, target: Callable[[], object], name: str) -> Thread:
        thread = Thread(target=target, name=name)
        thread.process = self
        thread.start()
        return thread

    def asked(self, question: Callable[[], Any]) -> Any:
        before, self.world.process = self.world.process, self
        try:
            return question()
        finally:
            self.world.process = before


class Line:
    """A connection of a process with a peer: what is sent either way comes in that order."""

    def __init__(self, process: Process, peer: str) -> None:
        """Prepare."""
        self.process = process
        self.world = process.world
        self.peer = peer
        self._said = self._heard = 0.0

    def dial(self, operation: str, patience: float, error: Exception) -> None:
        """Wait until the peer is reached, or raise an error."""
        self.process.step(operation)
        seconds = self.process.reaches(self.peer) - self.world.now
        sleep(min(seconds, patience))
        if seconds > patience:
            raise error

    def to_peer(self, call: Callable[..., object], *args: Any) -> None:
        self._said = max(self._said, self.process.reaches(self.peer))
        self.world.at(self._said, call, *args)

    def from_peer(self, call: Callable[..., object], *args: Any) -> None:
        self._heard = max(self._heard, self.process.reaches(self.peer))
        self.world.at(self._heard, call, *args)


def sleep(seconds: float) -> None:
    """Have the running thread wait."""
    thread = running()
    thread.park(thread.process.world.now + seconds)


def running() -> Thread:
    """Return the thread that runs; end it if the world has ended."""
    thread = _present.thread
    if thread is None or _present.over:
        raise GreenletExit
    return thread


class Thread:
    """Takes the place of `threading.Thread`."""

    def __init__(
        self, target: Callable[[], object] | None = None, name: str = "", *, daemon: bool | None = None
    ) -> None:
        """Prepare; see `threading.Thread`."""
        self.process = _present.process
        self.name = name
        self.ticket = 0
        self._target = target
        self._greenlet: greenlet | None = None
        self._ended = Event()

    def start(self) -> None:
        self._greenlet = greenlet(self._run, self.process.world.hub)
        self.process.threads.append(self)
        self.process.world.soon(self._resume, None, self.ticket)

    def run(self) -> None:
        if self._target is not None:
            self._target()

    def is_alive(self) -> bool:
        return self._greenlet is not None and not self._ended.is_set()

    def join(self, timeout: float | None = None) -> None:
        if self.is_alive():
            self._ended.wait(timeout)

    def end(self) -> None:
        if self._greenlet:
            self._greenlet.throw()

    def park(self, until: float | None = None) -> Any:
        """Wait to be woken, at `until` with `TIME_UP`; return with what it was woken."""
        world = self.process.world
        if until is not None:
            world.at(until, self._resume, TIME_UP, self.ticket)
        return world.hub.switch()

    def waker(self) -> Callable[..., None]:
        """Return what wakes the thread from its next wait, with a value, and no other."""
        ticket = self.ticket

        def wake(value: Any = None) -> None:
            if self.ticket == ticket:
                self.process.world.soon(self._resume, value, ticket)

        return wake

    def _resume(self, value: Any, ticket: int) -> None:
        process = self.process
        world = process.world
        if ticket != self.ticket or process.dead:
            return
        if process.paused_until > world.now:
            world.at(process.paused_until, self._resume, value, ticket)
            return
        self.ticket += 1
        world.thread, world.process = self, process
        assert self._greenlet is not None
        self._greenlet.switch(value)
        world.thread = None

    def _run(self, _value: object = None) -> None:
        world = self.process.world
        try:
            self.run()
        except GreenletExit:
            pass
        except Exception as error:  # noqa: BLE001 - no thread of the package may end so
            world.violated(f"the thread {self.name} of {self.process} failed: {error!r}")
        if not world.over:
            self._ended.set()


TIME_UP = object()


class Event:
    """Takes the place of `threading.Event`."""

    def __init__(self) -> None:
        """Begin unset."""
        self._set = False
        self._wakers: list[Callable[[], None]] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None, other: Any = None) -> bool:
        """Wait until it is set, or the other says something."""
        if not self._set and (timeout is None or timeout > 0):
            thread = running()
            wake = thread.waker()
            self._wakers.append(wake)
            if other is not None:
                other.when_readable(wake)
            thread.park(_after(timeout))
        return self._set


def _after(timeout: float | None) -> float | None:
    """Return when a time is over that the running process measures."""
    return None if timeout is None else _present.now + timeout / _present.process.rate


class Lock:
    """Takes the place of `threading.Lock` and `threading.RLock`."""

    def __init__(self) -> None:
        """Begin free."""
        self._owner: Thread | None = None
        self._depth = 0
        self._wakers: deque[Callable[[], None]] = deque()

    def __enter__(self) -> bool:
        """Take it."""
        thread = _present.thread
        while self._depth and self._owner is not thread:
            waiting = running()
            self._wakers.append(waiting.waker())
            waiting.park()
        self._owner = thread
        self._depth += 1
        return True

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        self._depth -= 1
        if not self._depth and self._wakers:
            self._wakers.popleft()()


class Condition(Lock):
    """Takes the place of `threading.Condition`."""

    def __init__(self) -> None:
        """Begin free."""
        super().__init__()
        self._waiting: list[Callable[[], None]] = []

    def notify_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        for wake in waiting:
            wake()

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        until = _after(timeout)
        while not (result := predicate()) and (until is None or _present.now < until):
            thread = running()
            depth, self._depth = self._depth, 1
            self._waiting.append(thread.waker())
            self.__exit__()
            thread.park(until)
            self.__enter__()
            self._depth = depth
        return result


class Doorbell(Event):
    """Takes the place of `celery_pgleader.threads.Doorbell`."""

    def wait(self, timeout: float | None = None, other: Any = None) -> bool:
        rung = super().wait(timeout, other)
        self.clear()
        return rung

    def close(self) -> None:
        pass


class Requests(Doorbell):
    """Takes the place of `celery_pgleader.election.requests.Requests`."""

    def __init__(self) -> None:
        """Begin empty."""
        super().__init__()
        self._items: deque[Any] = deque()
        self._process = _present.process

    def put(self, item: Any) -> None:
        self._items.append(item)
        self.set()
        # Who waits for the server sees it at the next glance.
        for session in self._process.sessions:
            _present.at(_present.now + _present.random.random() * GLANCE, session.poke)

    def take(self) -> Any:
        return self._items.popleft() if self._items else None

    def pending(self) -> bool:
        return bool(self._items)

    def wait(self, timeout: float | None = None, other: Any = None) -> bool:
        self._set = self.pending()
        return super().wait(timeout, other)


class SimpleQueue:
    """Takes the place of `queue.SimpleQueue`."""

    def __init__(self) -> None:
        """Begin empty."""
        self._items: deque[Any] = deque()
        self._filled = Event()

    def empty(self) -> bool:
        return not self._items

    def put(self, item: Any) -> None:
        self._items.append(item)
        self._filled.set()

    def get(self) -> Any:
        while not self._items:
            self._filled.clear()
            self._filled.wait()
        return self._items.popleft()


class Clock:
    """Takes the place of the module `time`: the clocks of the running process."""

    @staticmethod
    def monotonic() -> float:
        return _present.process.monotonic()

    @staticmethod
    def time() -> float:
        return _present.process.time()


def chance() -> float:
    """Take the place of `random.random`."""
    return _present.random.random()


class Datetime(datetime):
    """Takes the place of `datetime.datetime` where the present is asked for."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]  # never without a zone
        process = _present.process
        return (BEGINNING + timedelta(seconds=_present.now + process.wall)).astimezone(tz)
