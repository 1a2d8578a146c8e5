"""What of the package and of Celery is replaced in a simulation: threads, clocks, sockets; nothing that decides.

All else is the code that workers run, down to its statements and from its composition root on.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from uuid import UUID

import celery.beat

from celery_pgleader import threads
from celery_pgleader.beat import leader_beat, publisher, scheduler, slot_keeper
from celery_pgleader.config import Config
from celery_pgleader.election import elector, leadership, lock_session, term_runner
from celery_pgleader.notifications import courier, relay
from celery_pgleader.store import ledger, mailbox, presence, session, terms
from celery_pgleader.tasks import leader_queue, orphans, request, run_guard, run_leadership, strategy, turn
from celery_pgleader.worker import candidate, participant, steward
from tests.simulation import server, world
from tests.simulation.broker import Load
from tests.simulation.worker import State, TrustPage, TrustReader, default_strategy

THREADING = SimpleNamespace(
    Thread=world.Thread,
    Condition=world.Condition,
    Event=world.Event,
    Lock=world.Lock,
    current_thread=world.current_thread,
    get_ident=world.get_ident,
)
QUEUE = SimpleNamespace(SimpleQueue=world.SimpleQueue)


class Log:
    """Takes the place of loggers: into the history, if it is told; what no thread may run into is a violation."""

    def __getattr__(self, _level: str) -> Any:
        """Return what writes a line."""
        return self.info

    def info(self, message: str, *args: object, **_: object) -> None:
        """Write a line."""
        present = world.world()
        if present.trace is not None:
            present.tell(present.process, message % args)

    def log(self, _level: int, message: str, *args: object) -> None:
        """Write a line."""
        self.info(message, *args)

    def exception(self, message: str, *args: object) -> None:
        """Write that something failed that may not fail."""
        present = world.world()
        present.tell(present.process, traceback.format_exc())
        present.violated(f"{present.process}: {message % args}: {sys.exc_info()[1]!r}")


LOG = Log()
READER, STATE = TrustReader(), State()


def _jitter() -> float:
    return world.world().random.random()


# Names of modules, and what they stand for in a simulation.
NAMES: list[tuple[Any, str, Any]] = [
    *(
        (module, "threading", THREADING)
        for module in (elector, leadership, term_runner, publisher, leader_beat, scheduler)
    ),
    *((module, "threading", THREADING) for module in (relay, participant, threads, turn)),
    *((module, "queue", QUEUE) for module in (threads, leader_beat)),
    *((module, "time", world.Clock) for module in (scheduler, leader_beat, participant, presence, turn, celery.beat)),
    *(
        (module, "logger", LOG)
        for module in (
            candidate,
            leadership,
            threads,
            slot_keeper,
            leader_beat,
            publisher,
            relay,
            steward,
            turn,
            strategy,
            run_guard,
        )
    ),
    *((module, "datetime", world.Datetime) for module in (slot_keeper, presence)),
    (presence, "uuid", SimpleNamespace(uuid4=lambda: UUID(int=world.world().random.getrandbits(128)))),
    (presence, "version", lambda _package: "simulated"),
    (elector, "Requests", world.Requests),
    *((module, "Doorbell", world.Doorbell) for module in (relay, steward)),
    *((module, "open_session", server.open_session) for module in (lock_session, session, orphans, turn)),
    (terms, "Schema", lambda _session: SimpleNamespace(ensure=lambda: None)),
    (mailbox, "set_json_loads", lambda *_: None),
    *((module, "reader", READER) for module in (participant, leader_queue, request, run_guard, run_leadership)),
    *((module, "state", STATE) for module in (leader_queue, request)),
    (strategy, "strategy", SimpleNamespace(default=default_strategy)),
    (leader_queue, "_bind_to_delayed_delivery", lambda *_: None),
    (participant, "TrustPage", TrustPage),
    (courier, "LOADS", {"simulated": Load}),
    # So that a batch often has no room for all that waits.
    (mailbox, "BATCH_BYTES", 2),
    # What is raw is at most once, and promises nothing that could be checked.
    (candidate, "Listener", lambda *_: SimpleNamespace(run=lambda _term, ended: ended.wait())),
    # What takes long and decides nothing: reading the URL again, and the files that a stack leads through.
    (Config, "database", "the simulated one"),
    (celery.beat, "traceback", SimpleNamespace(format_stack=lambda: "")),
]

# Arguments with a default that is a clock.
DEFAULTS: list[tuple[Any, str, Any]] = [
    (elector.Elector, "clock", world.Clock.monotonic),
    (elector.Elector, "jitter", _jitter),
    (leadership.Leadership, "clock", world.Clock.monotonic),
    (leader_beat.LeaderBeat, "clock", world.Clock.monotonic),
    (relay.Relay, "clock", world.Clock.monotonic),
    (publisher.Publisher, "clock", world.Clock.time),
    (ledger.Ledger, "clock", world.Clock.time),
    (steward.Steward, "clock", world.Clock.monotonic),
]

BASES = [(elector.Candidacy, world.Thread), (threads.Ending, world.Event)]


@contextmanager
def simulated() -> Iterator[None]:
    """Have the package run in the simulated world inside of the block."""
    with ExitStack() as stack:
        for module, name, value in NAMES:
            stack.enter_context(patch.object(module, name, value))
        for cls, name, value in DEFAULTS:
            stack.enter_context(_default(cls.__init__, name, value))
        for cls, base in BASES:
            stack.callback(setattr, cls, "__bases__", cls.__bases__)
            cls.__bases__ = (base,)
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.CRITICAL)
        yield


@contextmanager
def _default(function: Any, name: str, value: object) -> Iterator[None]:
    code = function.__code__
    keywords, defaults = function.__kwdefaults__ or {}, function.__defaults__ or ()
    try:
        if name in keywords:
            function.__kwdefaults__ = {**keywords, name: value}
        else:
            names = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
            assert name in names
            function.__defaults__ = tuple(value if n == name else d for n, d in zip(names, defaults, strict=True))
        yield
    finally:
        function.__kwdefaults__, function.__defaults__ = keywords or None, defaults or None
