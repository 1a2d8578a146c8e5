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
from tests.simulation.postgres import Database, LockNotAvailable, Request, Session, Steps, UniqueViolation
from tests.simulation.world import BEGINNING, Doorbell, Process, Requests, World, running, sleep, world

# So long at most between the server saying that it ends a session, and the locks being free.
FAREWELL = 0.001
# And between one step of a statement and the next.
BETWEEN = 0.0002


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
        """Return the server's time."""
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
        """Have an operator write an order into an election's row, if there is one and nobody is writing to it."""
        session = self.database.connect()
        transaction = session.begin()
        row = transaction.latest("elections", election)
        if self.up and row is not None and transaction.has_free("elections", election):
            self.world.tell("operator", f"orders {changes}")
            transaction.write("elections", election, {**row, **changes})
            transaction.notified.add("pgleader_orders")
            transaction.commit()
        session.end()

    def transact(self, sent: Sequence[dict[str, Any]], seconds: float, committed: bool) -> None:  # noqa: FBT001 - as it ends
        """Have somebody send notifications, in a transaction that lasts for a while."""
        if not self.up:
            return
        session = self.database.connect()
        transaction = session.begin()
        _, twin = twins.twin_of(NOTIFY)
        steps = chain.from_iterable(twin(transaction, **parameters) for parameters in sent)

        def end() -> None:
            if session.transaction is transaction:
                if committed:
                    transaction.commit()
                session.end()

        def go_on() -> None:
            if session.transaction is transaction:
                try:
                    request = next(steps)
                except StopIteration:
                    self.world.at(self.world.now + seconds, end)
                else:
                    if request is None:
                        self.world.soon(go_on)
                    else:
                        request.on_grant = lambda: self.world.soon(go_on)

        go_on()


class Backend:
    """One session's part of the server."""

    def __init__(self, server: Server, client: ClientSession) -> None:
        """Begin."""
        self.server = server
        self.world = server.world
        self.client = client
        self.session: Session = server.database.connect()
        self.session.woken = lambda: client.from_server(client.wake_up)
        self.pid = self.session.pid
        server.backends[self.pid] = self
        server.clients[self.pid] = client
        self._ended = False
        self._hung_up = False
        self._terminated = False
        self._committing = False
        self._name = ""
        self._steps: Steps | None = None
        self._turn = 0
        self._idle_since = 0.0
        self._looks_at = float("inf")
        # For those who check: it was ended from outside, and its client has not heard of it.
        self.taken_away = False

    def start(self, name: str, twin: twins.Twin, arguments: list[Any], parameters: dict[str, Any]) -> None:
        """Execute a statement."""
        if self._ended:
            return
        self._name = name
        transaction = self.session.transaction or self.session.begin()
        self._steps = twin(transaction, *arguments, **parameters)
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
            self._fail(QueryCanceled("canceling statement due to user request"))
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

    def _finish(self, rows: list[tuple[Any, ...]]) -> None:
        self._steps = None
        if self.session.transaction is not None and self.session.transaction.written:
            self._committing = True
            seconds = self.world.random.random() * 0.002 + self.client.process.trapped(self._name, "commit")
            self.world.at(self.world.now + seconds, self._commit, rows)
        else:
            self._commit(rows)

    def _commit(self, rows: list[tuple[Any, ...]]) -> None:
        if self._ended:
            return
        self._committing = False
        if self.session.transaction is not None:
            self.session.transaction.commit()
        self._reply(rows)

    def _fail(self, error: psycopg.Error) -> None:
        if self.session.transaction is not None:
            self.session.transaction.roll_back()
        self._steps = None
        self._reply(error)

    def _reply(self, answer: list[tuple[Any, ...]] | psycopg.Error) -> None:
        self.client.process.trapped(self._name, "answer")
        self.client.from_server(self.client.answered, answer, self.session.application_name)
        if self._hung_up:
            self._end()
        elif self._terminated:
            self.terminate()
        else:
            self._rest()

    def _rest(self) -> None:
        self._idle_since = self.world.now
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
            self._rest_of(self._idle_since + timeout)

    def _rest_of(self, when: float) -> None:
        self._looks_at = when
        self.world.at(when, self._look)

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

    def __init__(self, rows: list[tuple[Any, ...]]) -> None:
        """Hold rows."""
        self._rows = rows
        self.rowcount = len(rows)
        self.description = True

    def fetchone(self) -> tuple[Any, ...] | None:
        """Return the first row."""
        return self._rows[0] if self._rows else None

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return all rows."""
        return self._rows


class ClientSession:
    """Takes the place of `celery_pgleader.postgres.Session`."""

    def __init__(self, server: Server, process: Process, application_name: str) -> None:
        """Begin, without a connection yet."""
        self.process = process
        self.world = process.world
        self.closed = False
        self._application_name = application_name
        self.info = SimpleNamespace(parameter_status=lambda _name: self._application_name)
        self._server = server
        # Whether the server, or the network, has ended the connection, and that has been seen here.
        self._broken = False
        self._heard = 0.0
        self._said = 0.0
        self._answer: list[tuple[Any, ...]] | psycopg.Error | None = None
        self._wake: Callable[[], None] | None = None
        self._wake_ups = 0
        self._on_readable: Callable[[], None] | None = None
        self._deadline: float | None = None
        self._interrupted: Callable[[], bool] | None = None
        self.backend: Backend | None = None

    def connect(self) -> None:
        """Open the connection."""
        process, began = self.process, self.world.now
        process.step("CONNECT")
        arrives = process.reaches("postgres")
        if arrives > began + CONNECT_TIMEOUT:
            sleep(CONNECT_TIMEOUT)
            raise OperationalError("the server does not answer")
        sleep(arrives - began)
        if not self._server.up:
            sleep(0.001)
            raise OperationalError("the server refuses the connection")
        self.backend = Backend(self._server, self)
        self.backend.session.application_name = self._application_name
        process.sessions.append(self)
        sleep(process.reaches("postgres") - self.world.now)

    # What the package calls.

    def execute(self, query: Any, parameters: dict[str, Any] | None = None) -> Result:
        """Have a statement executed, and wait for what comes of it."""
        name, twin = twins.twin_of(query)
        self.process.step(name)
        if self.closed or self._broken:
            raise OperationalError("the connection is lost")
        assert self.backend is not None
        self._answer = None
        self._to_server(self.backend.start, name, twin, twins.arguments_of(query), parameters or {})
        answer = self._await_answer()
        if isinstance(answer, psycopg.Error):
            raise answer
        return Result(answer)

    def _await_answer(self) -> list[tuple[Any, ...]] | psycopg.Error:
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
            if self._broken:
                raise OperationalError("the connection is lost")
            if self._deadline is not None and world.now >= self._deadline:
                raise DeadlinePassed("the server did not answer in time")
            if interrupted is not None and not cancelled and interrupted():
                cancelled = True
                assert self.backend is not None
                self._to_server(self.backend.cancel)
        self._wake = None
        answer, self._answer = self._answer, None
        return answer

    @contextmanager
    def bounded(self, seconds: float, interrupted: Callable[[], bool] | None = None) -> Iterator[None]:
        """Bound what is executed inside of the block."""
        self._deadline, self._interrupted = self.world.now + seconds / self.process.rate, interrupted
        try:
            yield
        finally:
            self._deadline, self._interrupted = None, None

    def hear(self, seconds: float, bell: Doorbell) -> list[None]:
        """Wait for a wake-up."""
        if not self._wake_ups and not self._broken:
            bell.wait(seconds, self)
        if self._broken:
            raise OperationalError("the connection is lost")
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
        """Tell whether the server still holds the other end, as far as is known here."""
        return not self.closed and not self._broken

    def is_quiet(self, *, asked: bool = False) -> bool:
        """Tell whether the server has said nothing unasked."""
        return not self.closed and (not self._broken or (asked and self._answer is not None))

    def open_line(self) -> None:
        """Do nothing: there is nothing that could be closed under a thread's hands."""

    def close(self) -> None:
        """End the connection."""
        if not self.closed:
            self.closed = True
            if not self.process.dead:
                self.process.sessions.remove(self)
            if not self._broken and not self.world.over:
                assert self.backend is not None
                self._to_server(self.backend.hang_up)

    # What comes and goes on the wire.

    def _to_server(self, call: Callable[..., object], *args: Any) -> None:
        self._said = max(self._said, self.process.reaches("postgres"))
        self.world.at(self._said, call, *args)

    def from_server(self, call: Callable[..., object], *args: Any) -> None:
        """Send something to the client."""
        self._heard = max(self._heard, self.process.reaches("postgres"))
        self.world.at(self._heard, self._hear, call, args)

    def _hear(self, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        if not self.closed and not self._broken and not self.process.dead:
            call(*args)

    def answered(self, answer: list[tuple[Any, ...]] | psycopg.Error, application_name: str) -> None:
        """Hear what a statement has come to."""
        self._answer = answer
        self._application_name = application_name
        self.poke()

    def wake_up(self) -> None:
        """Hear a NOTIFY."""
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
        """Have the network end the connection."""
        assert self.backend is not None
        if not self.closed and not self._broken:
            # What had come and was not read is gone as well.
            self._answer = None
            self.dropped()
            self._to_server(self.backend.hang_up)

    def vanish(self) -> None:
        """Close, as the operating system does for a process that has died."""
        if not self.closed and not self._broken:
            self.closed = True
            assert self.backend is not None
            self._to_server(self.backend.hang_up)

    def poke(self) -> None:
        """Have who waits for the server look again."""
        if self._wake is not None:
            self._wake()


def open_session(server: Server, application_name: str) -> ClientSession:
    """Open a session from the running process."""
    session = ClientSession(server, world().process, application_name)
    session.connect()
    return session
