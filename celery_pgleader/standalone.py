"""`LeaderElector`: the election and raw notifications in any Python program, without Celery."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from celery_pgleader.channels import check_channel
from celery_pgleader.config import Config
from celery_pgleader.election import Elector, Leadership, Term, TermRunner
from celery_pgleader.errors import ConfigurationError, NotificationError
from celery_pgleader.notifications.listener import Listener
from celery_pgleader.notifications.notifier import Notifier
from celery_pgleader.notifications.payload import Notification, decode
from celery_pgleader.threads import Inbox

default_logger = logging.getLogger(__name__)


class LeaderElector:
    """Takes part in an election and, while it leads, hands notifications to handlers.

    Needs no table and no right beyond LOGIN. All the work is done in threads; callbacks and handlers are called in
    threads of their own, one for the callback and one for each channel, so that none holds up another.

        with LeaderElector("postgresql://localhost/shop", election="shop") as elector:
            if elector.leadership.wait(timeout=10):
                while elector.is_leader:
                    do_one_thing()
    """

    def __init__(
        self,
        database_url: str | None = None,
        *,
        election: str = "default",
        lock: int | None = None,
        ttl: float = 5.0,
        poll_interval: float = 10.0,
        channels: Mapping[str, Callable[[Any], object]] | None = None,
        on_leadership_change: Callable[[bool], object] | None = None,
        node: str | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        """Prepare; nothing happens before `start`.

        Args:
            database_url: libpq URL or keyword string; by default libpq's environment says where to connect.
            election: whose leader is wanted. Only electors of one election compete.
            lock: an explicit lock key, shared with programs that call `pg_try_advisory_lock(bigint)`.
            ttl: seconds without a sign of life after which the server lets another lead.
            poll_interval: seconds between attempts to become a successor.
            channels: for each channel the function that gets the decoded JSON payload of its notifications.
            on_leadership_change: called with whether this node leads now, at each change.
            node: who this is; by default host and process id.
            logger: where to log; by default `celery_pgleader.standalone`.

        Raises:
            ConfigurationError: an argument, or two together, that cannot work.

        """
        if channels is not None and not isinstance(channels, Mapping):
            raise ConfigurationError(f"channels: must be a mapping of channel names to functions, not {channels!r}")
        if on_leadership_change is not None and not callable(on_leadership_change):
            raise ConfigurationError(f"on_leadership_change: must be callable, not {on_leadership_change!r}")
        handlers = dict(channels or {})
        for channel, handle in handlers.items():
            check_channel("channels", channel)
            if not callable(handle):
                raise ConfigurationError(f"channels: the handler of {channel!r} must be callable, not {handle!r}")
        self._config = Config(
            database_url=database_url or "", election=election, lock=lock, ttl=ttl, poll_interval=poll_interval
        )
        self._logger = logger or default_logger
        self._elector = Elector(self._config, node, logger=self._logger)
        self._notifier = Notifier(self._config, self._elector.node)
        self._inboxes: dict[str, Inbox[tuple[Any, Term]]] = {
            channel: Inbox(f"handler of channel {channel}", self._unless_lost(handle), self._logger)
            for channel, handle in handlers.items()
        }
        self._changes: Inbox[bool] | None = None
        if on_leadership_change is not None:
            changes = self._changes = Inbox("on_leadership_change", on_leadership_change, self._logger)
            self.leadership.subscribe(lambda change: changes.put(change.gained))
        listener = Listener(self._config, self.leadership, handlers, self._deliver)
        self._listening = TermRunner(self.leadership, "listener", listener.run, self._logger) if handlers else None

    @property
    def leadership(self) -> Leadership:
        """The term and whether it may be trusted; to ask, to wait on, to subscribe to."""
        return self._elector.leadership

    @property
    def is_leader(self) -> bool:
        """Whether this node may act as the leader now."""
        return self.leadership.trusted()

    def start(self) -> None:
        """Begin to stand for the election; return at once. A database that is away is waited for."""
        for inbox in self._all_inboxes():
            inbox.start()
        if self._listening is not None:
            self._listening.start()
        self._elector.start()

    def stop(self, timeout: float = 10.0) -> None:
        """Leave the election, free the lock, end all threads. May be called twice, or before `start`.

        Args:
            timeout: seconds to wait for that at most; a handler that takes longer goes on in its thread.

        """
        deadline = time.monotonic() + timeout
        self._elector.stop(timeout)
        owners: list[TermRunner | Inbox[Any]] = [
            *([self._listening] if self._listening is not None else []),
            *self._all_inboxes(),
        ]
        for owner in owners:
            owner.stop(max(0.0, deadline - time.monotonic()))
        self._notifier.close()

    def resign(self) -> None:
        """Let another node lead, if this one does."""
        self._elector.resign()

    def notify(self, payload: Any, channel: str) -> None:
        """Send a JSON value to whoever leads and listens now; it is delivered at most once.

        Also before `start` and after `stop`; the session that it opens is closed by the next `stop`.

        Raises:
            NotificationError: the value is no JSON, or longer than Postgres takes.
            ConfigurationError: the channel's name is none that Postgres would take.
            psycopg.Error: it could not be sent.

        """
        self._notifier.notify(channel, payload)

    def __enter__(self) -> LeaderElector:
        """Start."""
        self.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def _deliver(self, notification: Notification, term: Term) -> None:
        try:
            value = decode(notification.payload)
        except NotificationError as error:
            self._logger.warning("pgleader: dropped a notification on channel %s: %s", notification.channel, error)
        else:
            self._inboxes[notification.channel].put((value, term))

    def _unless_lost(self, handle: Callable[[Any], object]) -> Callable[[tuple[Any, Term]], object]:
        """Return what handles a payload if the term in which it was heard is trusted still."""

        def handle_if_trusted(item: tuple[Any, Term]) -> None:
            value, term = item
            if self.leadership.trusted(term):
                handle(value)
            else:
                self._logger.warning("pgleader: dropped a notification of term %d, which is over", term.number)

        return handle_if_trusted

    def _all_inboxes(self) -> list[Inbox[Any]]:
        return [*([self._changes] if self._changes else []), *self._inboxes.values()]
