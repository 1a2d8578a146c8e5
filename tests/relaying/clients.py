"""Those who send: threads, each with a connection of its own, at a steady pace."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from dataclasses import dataclass

import psycopg

from celery_pgleader import notify

PAUSE = 0.05


@dataclass(frozen=True)
class Written:
    """A notification whose transaction was committed.

    Attributes:
        client: who wrote it.
        key: under which.
        number: the client's own, which rises.
        began: monotonic seconds, before the transaction.
        ended: after it.

    """

    client: int
    key: str
    number: int
    began: float
    ended: float


class Client:
    """Writes durable notifications one by one, and with each sends a raw one."""

    def __init__(self, database: str, number: int, notifications: int, seconds: float, keys: int, seed: int) -> None:
        """Prepare; nothing is sent before `start`."""
        self.written: list[Written] = []
        self.error: BaseException | None = None
        # Transactions of which the server had to be asked whether they were committed.
        self.in_doubt = 0
        self._database = database
        self._number = number
        self._notifications = notifications
        self._seconds = seconds
        self._keys = keys
        self._random = random.Random(f"{seed} {number}")
        self._connection: psycopg.Connection | None = None
        self._thread = threading.Thread(target=self._run, name=f"client {number}", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def is_done(self) -> bool:
        """Tell whether all is sent."""
        if self.error is not None:
            raise AssertionError(f"client {self._number} failed: {self.error!r}") from self.error
        return not self._thread.is_alive()

    def _run(self) -> None:
        began = time.monotonic()
        pause = threading.Event()
        try:
            for number in range(self._notifications):
                pause.wait(max(0.0, began + self._seconds * number / self._notifications - time.monotonic()))
                self._write(str(self._random.randrange(self._keys)), number)
        except BaseException as error:  # noqa: BLE001 - told by whoever waits
            self.error = error
        finally:
            self._disconnect()

    def _write(self, key: str, number: int) -> None:
        began = time.monotonic()
        while not self._commit(key, number):
            threading.Event().wait(PAUSE)
        self.written.append(Written(self._number, key, number, began, time.monotonic()))

    def _commit(self, key: str, number: int) -> bool:
        """Write one; tell whether it was committed."""
        payload = {"client": self._number, "key": key, "number": number}
        transaction = None
        try:
            connection = self._connect()
            row = connection.execute("select pg_current_xact_id()::text").fetchone()
            transaction = row[0] if row else None
            notify("relayed", payload, key=key, connection=connection)
            notify("heard", payload, durable=False, connection=connection)
            connection.commit()
        except psycopg.Error:
            self._disconnect()
            return transaction is not None and self._was_committed(transaction)
        return True

    def _was_committed(self, transaction: str) -> bool:
        self.in_doubt += 1
        while True:
            with contextlib.suppress(psycopg.Error):
                row = self._connect().execute("select pg_xact_status(%s::text::xid8)", [transaction]).fetchone()
                self._disconnect()
                return bool(row and row[0] == "committed")
            self._disconnect()
            threading.Event().wait(PAUSE)

    def _connect(self) -> psycopg.Connection:
        if self._connection is None:
            self._connection = psycopg.connect(self._database, connect_timeout=2, application_name="client")
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
