"""Brings batches of messages to the broker, without waiting for each of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from kombu.exceptions import OperationalError
from kombu.utils.json import dumps

CONFIRM_PATIENCE = 10.0


class Courier:
    """A connection to the broker, and a producer for it.

    Inside of `batch`, what is published is on its way; when the block has ended without an error, the broker has it.
    """

    def __init__(self, app: Any) -> None:
        """Prepare; the broker is connected to when it is first needed."""
        self._app = app
        self._connection: Any = None
        self._producer: Any = None
        self._load: AbstractContextManager[object] = nullcontext()
        with app.connection_for_write() as connection:
            # Whether, of what is published in one batch, the broker may take some and refuse other; the others take all
            # of it or nothing, or one after the other.
            self.may_take_some: bool = connection.transport.driver_type == "amqp"

    @contextmanager
    def batch(self) -> Iterator[Any]:
        """Give a producer; at the end, see that the broker has got what was published with it.

        Raises:
            NotTaken: it has not, or not all of it.

        """
        try:
            if self._producer is None:
                self._connect()
            with self._load:
                yield self._producer
        except BaseException as error:
            not_taken = self._not_taken(error)
            self.close()
            if not_taken is not None:
                raise not_taken from error
            raise

    def reachable(self) -> bool:
        """Tell whether the broker can be connected to."""
        try:
            if self._producer is None:
                self._connect()
        except Exception:  # noqa: BLE001 - whatever it is, the broker is not to be had
            self.close()
            return False
        return True

    def is_of_connection(self, error: BaseException) -> bool:
        """Tell whether an error says something of the connection, rather than of the message at hand."""
        return self._not_taken(error) is not None

    def close(self) -> None:
        """Disconnect."""
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.release()

    def _not_taken(self, error: BaseException) -> NotTaken | None:
        """Return what an error of the connection comes to."""
        if isinstance(error, NotTaken):
            return error
        connection = self._connection
        if isinstance(error, OperationalError) and error.__cause__ is not None:
            # What kombu makes of all that goes wrong when a queue is declared.
            return self._not_taken(error.__cause__) or Cut(repr(error))
        if isinstance(error, TimeoutError):
            return BrokerAway(repr(error))
        if isinstance(error, (OSError, OperationalError, *(connection.connection_errors if connection else ()))):
            return Cut(repr(error))
        if connection is not None and isinstance(error, connection.channel_errors):
            # What Redis answers is about its memory, its disk or its role. AMQP closes the channel over a message.
            return Cut(repr(error)) if connection.transport.driver_type == "amqp" else Refused(repr(error))
        return None

    def _connect(self) -> None:
        # It is silent for as long as there is nothing to send, and nobody would send its heartbeats.
        connection = self._connection = self._app.connection_for_write(heartbeat=0)
        connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
        self._producer = self._app.amqp.Producer(connection, auto_declare=False)
        load = LOADS.get(connection.transport.driver_type)
        self._load = load(self._producer.channel) if load is not None else nullcontext()


class NotTaken(Exception):
    """The broker has not got what was published, or did not say so."""


class BrokerAway(NotTaken):
    """It could not be reached, or did not answer."""


class Cut(NotTaken):
    """It ended the connection, or the channel: it is away, or did so over one of the messages."""


class Refused(NotTaken):
    """It answered that it takes nothing now, such as for want of memory, or since a queue is full."""


class RedisLoad:
    """Has what is published over a Redis channel sent in one go."""

    def __init__(self, channel: Any) -> None:
        """Prepare."""
        self._channel = channel
        self._pipeline: Any = None

    def add(self, command: str, *arguments: Any) -> None:
        """Put a command on the load; called by kombu 5.7 and later in place of sending it."""
        getattr(self._pipeline, command)(*arguments)

    def __enter__(self) -> None:
        """Begin to load."""
        with self._channel.conn_or_acquire() as client:
            self._pipeline = client.pipeline(transaction=True)
        self._channel._put = self._put  # noqa: SLF001 - the one place in which kombu sends

    def __exit__(self, error: object, *_: object) -> None:
        """Send, unless something went wrong."""
        del self._channel._put  # noqa: SLF001 - as above
        if error is None:
            self._pipeline.execute()
        self._pipeline.reset()

    def _put(self, queue: str, message: dict[str, Any], **options: Any) -> None:
        channel = self._channel
        if hasattr(channel, "create_publish_batch"):
            type(channel)._put(channel, queue, message, _publish_batch=self, **options)  # noqa: SLF001 - as above
        else:
            priority = channel._get_message_priority(message, reverse=False)  # noqa: SLF001 - as kombu does
            self._pipeline.lpush(channel._q_for_pri(queue, priority), dumps(message))  # noqa: SLF001 - as kombu does


class AmqpLoad:
    """Has what is published over an AMQP channel confirmed, all of it at the end."""

    def __init__(self, channel: Any) -> None:
        """Put the channel into confirm mode."""
        self._channel = channel
        self._published = 0
        self._open: set[int] = set()
        self._refused = 0
        channel.confirm_select()
        channel.events["basic_ack"].add(self._on_ack)
        channel.events["basic_nack"].add(self._on_nack)
        channel.basic_publish = self._publish

    def __enter__(self) -> None:
        """Begin to load."""
        self._refused = 0

    def __exit__(self, error: object, *_: object) -> None:
        """Wait for the confirmations, unless something went wrong."""
        while error is None and self._open:
            connection = self._channel.connection
            if connection is None:
                raise Cut("the channel was closed")
            connection.drain_events(timeout=CONFIRM_PATIENCE)
        if error is None and self._refused:
            raise Refused(f"the broker refused {self._refused} messages")

    def _publish(self, *args: Any, **options: Any) -> Any:
        self._published += 1
        self._open.add(self._published)
        options.pop("confirm_timeout", None)
        return self._channel._basic_publish(*args, **options)  # noqa: SLF001 - without a wait for each

    def _on_ack(self, delivery_tag: int, multiple: bool) -> None:  # noqa: FBT001 - as AMQP calls it
        if multiple:
            self._open = {tag for tag in self._open if tag > delivery_tag}
        else:
            self._open.discard(delivery_tag)

    def _on_nack(self, delivery_tag: int, multiple: bool) -> None:  # noqa: FBT001 - as AMQP calls it
        self._refused += 1
        self._on_ack(delivery_tag, multiple)


LOADS: dict[str, Any] = {"redis": RedisLoad, "amqp": AmqpLoad}
