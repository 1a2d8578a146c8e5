"""What of the package and of Celery is replaced in a simulation: threads, clocks, sockets; nothing that decides.

All else is the code that workers run, down to its statements and from its composition root on.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partialmethod
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from uuid import UUID

import celery.beat

from celery_pgleader import threads
from celery_pgleader.beat import leader_beat, publisher, scheduler, slot_keeper
from celery_pgleader.beat.leader_beat import LeaderBeat
from celery_pgleader.config import Config
from celery_pgleader.election import elector, leadership, lock_session, term_runner
from celery_pgleader.election.leadership import Leadership
from celery_pgleader.notifications import courier, relay
from celery_pgleader.store import ledger, mailbox, presence, session, terms
from celery_pgleader.tasks import leader_queue, orphans, request, run_guard, run_leadership, strategy, trust_page, turn
from celery_pgleader.worker import candidate, participant, steward
from tests.simulation import server, world
from tests.simulation.broker import Load
from tests.simulation.worker import Page, Reader, State, default_strategy

THREADING = SimpleNamespace(
    Thread=world.Thread,
    Condition=world.Condition,
    Event=world.Event,
    Lock=world.Lock,
    current_thread=lambda: world.world().thread,
    get_ident=lambda: id(world.world().thread),
)


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
# One for all, as a page is found by the process.
READER = Reader()

# Modules whose names stand for something else in a simulation, as far as they have them.
MODULES = [
    *(candidate, elector, leader_beat, leader_queue, leadership, lock_session, orphans, participant, presence),
    *(publisher, relay, request, run_guard, run_leadership, scheduler, session, slot_keeper, steward, strategy),
    *(term_runner, threads, trust_page, turn),
]
NAMES: dict[str, Any] = {
    "threading": THREADING,
    "queue": SimpleNamespace(SimpleQueue=world.SimpleQueue),
    "time": world.Clock,
    "datetime": world.Datetime,
    "logger": LOG,
    "open_session": server.open_session,
    "reader": READER,
    "Doorbell": world.Doorbell,
    "Requests": world.Requests,
    "TrustPage": Page,
}
MORE: list[tuple[Any, str, Any]] = [
    (celery.beat, "time", world.Clock),
    (presence, "uuid", SimpleNamespace(uuid4=lambda: UUID(int=world.world().random.getrandbits(128)))),
    (presence, "version", lambda _package: "simulated"),
    *((module, "state", State()) for module in (leader_queue, request)),
    (terms, "Schema", lambda _session: SimpleNamespace(ensure=lambda: None)),
    (mailbox, "set_json_loads", lambda *_: None),
    (strategy, "strategy", SimpleNamespace(default=default_strategy)),
    (leader_queue, "_bind_to_delayed_delivery", lambda *_: None),
    (courier, "LOADS", {"simulated": Load}),
    # So that a batch often has no room for all that waits.
    (mailbox, "BATCH_BYTES", 2),
    # What is raw is at most once, and promises nothing that could be checked.
    (candidate, "Listener", lambda *_: SimpleNamespace(run=lambda _term, ended: ended.wait())),
    # What takes long and decides nothing: reading the URL again, and the files that a stack leads through.
    (Config, "database", "the simulated one"),
    (celery.beat, "traceback", SimpleNamespace(format_stack=lambda: "")),
]

# Arguments with a default that is a clock, or chance.
DEFAULTS: list[tuple[Any, dict[str, Any]]] = [
    (elector.Elector, {"clock": world.Clock.monotonic, "jitter": world.chance}),
    *((cls, {"clock": world.Clock.monotonic}) for cls in (Leadership, LeaderBeat, relay.Relay, steward.Steward)),
    *((cls, {"clock": world.Clock.time}) for cls in (publisher.Publisher, ledger.Ledger)),
]

BASES = [(elector.Candidacy, world.Thread), (threads.Ending, world.Event)]


@contextmanager
def simulated() -> Iterator[None]:
    """Have the package run in the simulated world inside of the block."""
    everywhere = [(module, name, NAMES[name]) for module in MODULES for name in NAMES if name in vars(module)]
    defaults = [(cls, "__init__", partialmethod(cls.__init__, **given)) for cls, given in DEFAULTS]
    with ExitStack() as stack:
        for target, name, value in [*everywhere, *MORE, *defaults]:
            stack.enter_context(patch.object(target, name, value))
        for cls, base in BASES:
            stack.callback(setattr, cls, "__bases__", cls.__bases__)
            cls.__bases__ = (base,)
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.CRITICAL)
        yield
