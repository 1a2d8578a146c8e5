"""The simulated Postgres in simulated time, behind a network: what sessions go through from end to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import chain
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import psycopg
from psycopg import OperationalError
from psycopg.errors import QueryCanceled

from celery_pgleader.postgres import CONNECT_TIMEOUT, GLANCE, DeadlinePassed
from celery_pgleader.store.sql import NOTIFY
from tests.simulation import twins
from tests.simulation.postgres import Database, LockNotAvailable, Request, Rows, Steps, UniqueViolation
from tests.simulation.world import BEGINNING, Doorbell, Line, Process, Requests, World, running, sleep, world

# So long at most between the server saying that it ends a session, and the locks being free.
FAREWELL = 0.001
# And between one step of a statement and the next.
BETWEEN = 0.0002
DONE = object()


class Server:
    """Postgres: up or down, and its backends."""

    def __init__(self, world: World) -> None:
        """Begin with an empty ledger."""
        self.world = world
        self.database = Database(self.clock, lambda: UUID(int=world.random.getrandbits(128)))
        self.up = True
        self.backends: dict[int, Backend] = {}
        # All that there ever were, by the pid of their backends.
        self.clients: dict[int, ClientSession] = {}

    def clock(self) -> datetime:
        return BEGINNING + timedelta(seconds=self.world.now)

    def crash(self, seconds: float) -> None:
        """Crash, and be back after a while."""
        if self.up:
            self.world.tell("postgres", f"crashes, and is away for {seconds:.3f} s")
            self.up = False
            for backend in list(self.backends.values()):
                backend.drop()
            self.database.crash(lose=self.world.random.randint(0, len(self.database.unflushed)))
            self.world.at(self.world.now + seconds, self._restart)

    def _restart(self) -> None:
        self.up = True
        self.world.tell("postgres", "is back")

    def terminate(self, pid: int) -> None:
        """End a session, as `pg_terminate_backend` does."""
        backend = self.backends.get(pid)
        if backend is not None:
            self.world.tell("postgres", f"session {pid} of {backend.client.process} is terminated")
            backend.terminate()

    def order(self, election: str, changes: dict[str, Any]) -> None:
        if self.up and self.database.order(election, changes):
            self.world.tell("operator", f"orders {changes}")

    def transact(self, sent: Sequence[dict[str, Any]], seconds: float, committed: bool) -> None:  # noqa: FBT001 - as it ends
        """Have somebody send notifications, in a transaction that lasts for a while."""
        if not self.up:
            return
        session = self.database.connect()
        transaction = session.begin()
        steps = chain.from_iterable(twins.begin(transaction, NOTIFY, parameters) for parameters in sent)

        def go_on() -> None:
            # Unless the server has crashed.
            request: Any = next(steps, DONE) if session.transaction is transaction else None
            if request is DONE:
                self.world.at(self.world.now + seconds, end)
            elif request is not None:
                request.on_grant = lambda: self.world.soon(go_on)
            elif session.transaction is transaction:
                self.world.soon(go_on)

        def end() -> None:
            if session.transaction is transaction:
                if committed:
                    transaction.commit()
                session.end()

        go_on()


class Backend:
    """One session's part of the server."""

    def __init__(self, server: Server, client: ClientSession, application_name: str) -> None:
        """Begin."""
        self.server = server
        self.world = server.world
        self.client = client
        self.session = server.database.connect(application_name)
        self.session.woken = lambda: client.from_server(client.wake_up)
        self.pid = self.session.pid
        server.backends[self.pid] = self
        server.clients[self.pid] = client
        self._ended = self._hung_up = self._terminated = self._committing = False
        self._name = ""
        self._steps: Steps | None = None
        self._turn = 0
        self._idle_since = 0.0
        self._looks_at = float("inf")
        # For those who check: it was ended from outside, and its client has not heard of it.
        self.taken_away = False

    def start(self, name: str, query: Any, parameters: dict[str, Any]) -> None:
        if not self._ended:
            self._name = name
            self._steps = twins.begin(self.session.transaction or self.session.begin(), query, parameters)
            self._go_on(self._turn)

    def _go_on(self, turn: int, error: Exception | None = None) -> None:
        if self._ended or turn != self._turn or self._steps is None:
            return
        self._turn += 1
        try:
            request = self._steps.throw(error) if error is not None else self._steps.send(None)
        except StopIteration as stop:
            self._finish(stop.value)
        except LockNotAvailable:
            assert self.session.transaction is not None
            self.session.transaction.roll_back()
            self._steps = None
            self._reply(QueryCanceled("canceling statement due to user request"))
        except UniqueViolation as violation:
            self.world.violated(f"{self._name} of {self.client.process} violates the key of {violation}")
        else:
            self._wait(request)

    def _wait(self, request: Request | None) -> None:
        world, turn = self.world, self._turn
        if request is None:
            held_up = world.random.random() * BETWEEN + self.client.process.trapped(self._name, "within")
            world.at(world.now + held_up, self._go_on, turn)
            return
        request.on_grant = lambda: world.soon(self._go_on, turn)
        if request.timeout is not None:
            world.at(world.now + request.timeout, self._go_on, turn, LockNotAvailable())

    def cancel(self) -> None:
        """Cancel the statement that is under way, if it waits for a lock."""
        if self._steps is not None and not self._committing:
            self._go_on(self._turn, LockNotAvailable())

    def _finish(self, rows: Rows) -> None:
        self._steps = None
        assert self.session.transaction is not None
        if self.session.transaction.written:
            self._committing = True
            seconds = self.world.random.random() * 0.002 + self.client.process.trapped(self._name, "commit")
            self.world.at(self.world.now + seconds, self._commit, rows)
        else:
            self._commit(rows)

    def _commit(self, rows: Rows) -> None:
        if self._ended:
            return
        self._committing = False
        assert self.session.transaction is not None
        self.session.transaction.commit()
        self._reply(rows)

    def _reply(self, answer: Rows | psycopg.Error) -> None:
        self.client.process.trapped(self._name, "answer")
        self.client.from_server(self.client.answered, answer, self.session.application_name)
        if self._hung_up:
            self._end()
        elif self._terminated:
            self.terminate()
        else:
            self._idle_since = self.world.now
            self._watch()

    def _watch(self) -> None:
        timeout = self.session.idle_timeout
        if timeout and self._idle_since + timeout < self._looks_at:
            self._looks_at = self._idle_since + timeout
            self.world.at(self._looks_at, self._look)

    def _look(self) -> None:
        self._looks_at = float("inf")
        timeout = self.session.idle_timeout
        if self._ended or self._steps is not None or self._committing or not timeout:
            return
        if self.world.now >= self._idle_since + timeout - 1e-9:
            self.world.tell("postgres", f"session {self.pid} of {self.client.process} has been idle for too long")
            self._farewell()
        else:
            self._watch()

    def terminate(self) -> None:
        """End the session, saying so."""
        self.taken_away = True
        if self._committing:
            self._terminated = True
        else:
            self._farewell()

    def drop(self) -> None:
        """End it, as a crash does."""
        self.taken_away = True
        self.client.from_server(self.client.dropped)
        self._forget()

    def hang_up(self) -> None:
        """Notice that the client is gone."""
        if self._steps is None and not self._committing:
            self._end()
        else:
            self._hung_up = True

    def _farewell(self) -> None:
        self.client.from_server(self.client.dropped)
        self._forget()
        self.world.at(self.world.now + self.world.random.random() * FAREWELL, self.session.end)

    def _end(self) -> None:
        self._forget()
        self.session.end()

    def _forget(self) -> None:
        self._ended = True
        self._steps = None
        self.server.backends.pop(self.pid, None)


class Result:
    """What a cursor gives."""

    description = True

    def __init__(self, rows: Rows) -> None:
        """Hold rows."""
        self._rows = rows
        self.rowcount = len(rows)

    def fetchone(self) -> tuple[Any, ...] | None:
        return self._rows[0] if self._rows else None

    def fetchall(self) -> Rows:
        return self._rows


class ClientSession(Line):
    """Takes the place of `celery_pgleader.postgres.Session`."""

    def __init__(self, server: Server, process: Process, application_name: str) -> None:
        """Open the connection."""
        super().__init__(process, "postgres")
        self.closed = False
        # Whether the server, or the network, has ended the connection, and that has been seen here.
        self._broken = False
        self._application_name = application_name
        self.info = SimpleNamespace(parameter_status=lambda _name: self._application_name)
        self._answer: Rows | psycopg.Error | None = None
        self._wake: Callable[[], None] | None = None
        self._wake_ups = 0
        self._on_readable: Callable[[], None] | None = None
        self._deadline: float | None = None
        self._interrupted: Callable[[], bool] | None = None
        self.dial("CONNECT", CONNECT_TIMEOUT, OperationalError("the server does not answer"))
        if not server.up:
            sleep(0.001)
            raise OperationalError("the server refuses the connection")
        self.backend = Backend(server, self, application_name)
        process.sessions.append(self)
        sleep(process.reaches(self.peer) - self.world.now)

    # What the package calls.

    def execute(self, query: Any, parameters: dict[str, Any] | None = None) -> Result:
        name = twins.name_of(query)
        self.process.step(name)
        self._raise_if_broken()
        self._answer = None
        self.to_peer(self.backend.start, name, query, parameters or {})
        answer = self._await_answer()
        if isinstance(answer, psycopg.Error):
            raise answer
        return Result(answer)

    def _raise_if_broken(self) -> None:
        if self.closed or self._broken:
            raise OperationalError("the connection is lost")

    def _await_answer(self) -> Rows | psycopg.Error:
        world = self.world
        thread = running()
        interrupted, cancelled = self._interrupted, False
        # What is asked here ten times a second is told by who would say yes, as far as it can be.
        polled = interrupted is not None and not isinstance(getattr(interrupted, "__self__", None), Requests)
        while self._answer is None:
            self._wake = thread.waker()
            until = self._deadline
            if polled and not cancelled:
                until = min(until or float("inf"), world.now + GLANCE)
            thread.park(until)
            if self._answer is not None:
                break
            self._raise_if_broken()
            if self._deadline is not None and world.now >= self._deadline:
                raise DeadlinePassed("the server did not answer in time")
            if interrupted is not None and not cancelled and interrupted():
                cancelled = True
                self.to_peer(self.backend.cancel)
        self._wake = None
        answer, self._answer = self._answer, None
        return answer

    @contextmanager
    def bounded(self, seconds: float, interrupted: Callable[[], bool] | None = None) -> Iterator[None]:
        self._deadline, self._interrupted = self.world.now + seconds / self.process.rate, interrupted
        try:
            yield
        finally:
            self._deadline, self._interrupted = None, None

    def hear(self, seconds: float, bell: Doorbell) -> list[None]:
        if not self._wake_ups and not self._broken:
            bell.wait(seconds, self)
        self._raise_if_broken()
        ups, self._wake_ups = self._wake_ups, 0
        return [None] * ups

    def fileno(self) -> Any:
        """Return what `Requests.wait` and `Doorbell.wait` can wait for."""
        return self

    def when_readable(self, wake: Callable[[], None]) -> None:
        """Have something called when the server says something unasked."""
        self._on_readable = wake
        if self._broken:
            wake()

    def is_alive(self) -> bool:
        return not self.closed and not self._broken

    def is_quiet(self, *, asked: bool = False) -> bool:
        return not self.closed and (not self._broken or (asked and self._answer is not None))

    def open_line(self) -> None:
        """Do nothing: there is nothing that could be closed under a thread's hands."""

    def close(self) -> None:
        if not self.closed and not self.process.dead:
            self.process.sessions.remove(self)
        self.vanish()

    def vanish(self) -> None:
        """Close, as the operating system does for a process that has died."""
        if not self.closed and not self._broken and not self.world.over:
            self.to_peer(self.backend.hang_up)
        self.closed = True

    # What comes and goes on the wire.

    def from_server(self, call: Callable[..., object], *args: Any) -> None:
        self.from_peer(self._hear, call, args)

    def _hear(self, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        if not self.closed and not self._broken and not self.process.dead:
            call(*args)

    def answered(self, answer: Rows | psycopg.Error, application_name: str) -> None:
        self._answer = answer
        self._application_name = application_name
        self.poke()

    def wake_up(self) -> None:
        self._wake_ups += 1
        if self._on_readable is not None:
            self._on_readable()

    def dropped(self) -> None:
        """Hear that the server has ended the session."""
        self._broken = True
        self.poke()
        if self._on_readable is not None:
            self._on_readable()

    def reset(self) -> None:
        if not self.closed and not self._broken:
            # What had come and was not read is gone as well.
            self._answer = None
            self.dropped()
            self.to_peer(self.backend.hang_up)

    def poke(self) -> None:
        """Have who waits for the server look again."""
        if self._wake is not None:
            self._wake()


def open_session(_url: str, application_name: str, **_: Any) -> ClientSession:
    """Open a session from the running process."""
    return ClientSession(world().server, world().process, application_name)
