"""The leader queue, which only the leader consumes."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from queue import Empty
from typing import Any

from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.utils.quorum_queues import detect_quorum_queues
from celery.worker import state
from kombu.transport.native_delayed_delivery import bind_queue_to_native_delayed_delivery_exchange

from celery_pgleader.election import Change, Leadership
from celery_pgleader.tasks.request import give_back
from celery_pgleader.tasks.trust_page import reader


class LeaderQueue:
    """Has a worker's consumer consume the leader queue while the worker leads, and not otherwise.

    A consumer may only be touched in the worker's main loop. What is not called from there asks for `reconcile` to be
    called there; since such calls may come late and in any order, it looks at how things are, not at what happened.
    """

    def __init__(self, name: str, leadership: Leadership) -> None:
        """Prepare.

        Args:
            name: of the queue.
            leadership: says whether to consume.

        """
        self.name = name
        self._leadership = leadership
        self._consumer: Any = None
        self.closed = False
        # How many connections to the broker there have been.
        self.connections = 0

    def attach(self, consumer: Any) -> None:
        """Take over a consumer that is connecting; it is not ready for messages before its loop runs."""
        self.connections += 1
        self._consumer = consumer
        self.ask_for_reconcile()

    def detach(self) -> None:
        """Let go of a consumer that is about to reconnect or stop, and see that it does not resume the queue."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            self.leave_out(consumer.app)

    def leave_out(self, app: Any) -> None:
        """Take the queue out of those that a worker consumes by itself."""
        app.amqp.queues.deselect([self.name])

    def close(self) -> None:
        """Join the queue no more, whoever leads; the consumer is about to stop. Safe in a signal handler."""
        # Asking for a reconcile would take a lock that the handler may have interrupted.
        self.closed = True

    def on_change(self, _change: Change) -> None:
        """Follow the leadership."""
        self.ask_for_reconcile()

    def held(self) -> set[str] | None:
        """Return the delivery tags of the queue's messages that this worker has in hand.

        It may be called in any thread. None is returned if that cannot be told now: while there is no connection, or
        while the main loop is changing what is read.
        """
        consumer = self._consumer
        if consumer is None or consumer.task_consumer is None:
            return None
        try:
            qos = consumer.task_consumer.channel.qos
            # What is done with is kept there for a while, and marked.
            messages = [message for tag, message in [*qos._delivered.items()] if tag not in qos._dirty]  # noqa: SLF001
            # What runs since before the connection was lost is not of this channel.
            messages += [request.message for request in (*state.reserved_requests, *state.active_requests)]
        except RuntimeError:
            return None
        return {message.delivery_tag for message in messages if message.delivery_info.get("routing_key") == self.name}

    def reconcile(self) -> None:
        """Consume or not, as it should be now. To be called in the worker's main loop only."""
        consumer = self._consumer
        if consumer is None or consumer.task_consumer is None:
            return
        wanted = self._leadership.trusted() and reader.may_begin() and not self.closed
        consuming = consumer.task_consumer.consuming_from(self.name)
        if wanted and not consuming:
            queues = consumer.app.amqp.queues
            if self.name not in queues:
                # As publishers declare it, even where task_create_missing_queues is off.
                queues.add(queues.new_missing(self.name))
            consumer.add_task_queue(self.name)
            _bind_to_delayed_delivery(consumer.app, queues[self.name])
        elif consuming and not wanted:
            consumer.cancel_task_queue(self.name)
        if not wanted:
            self._give_back(consumer)

    def _give_back(self, consumer: Any) -> None:
        """Return to the queue what was received and has not begun; end what is to be aborted."""
        for request, timer in _scheduled(consumer):
            consumer.timer.cancel(timer)
            consumer.qos.decrement_eventually()
            give_back(request)
        for request in list(state.reserved_requests):
            if not _is_leader_only(request):
                continue
            if request in state.active_requests:
                if self._is_to_be_aborted(request):
                    _abort(consumer, request)
            elif request._apply_result is None:  # noqa: SLF001 - whether the pool has it is told by nothing else
                give_back(request)
            elif self.closed:
                _settle(consumer.pool, request)

    def _is_to_be_aborted(self, request: Any) -> bool:
        return getattr(request.task, "on_leadership_lost", "finish") == "abort" and not self._leadership.trusted()

    def ask_for_reconcile(self) -> None:
        """Have the main loop look again at how things are."""
        consumer = self._consumer
        if consumer is not None:
            consumer.call_soon(self.reconcile)


def _bind_to_delayed_delivery(app: Any, queue: Any) -> None:
    """Have what was sent with an `eta` come to the queue, where it is RabbitMQ itself that lets it wait.

    Celery does so when a worker starts, for the queues that it knows of, as it is where there are quorum queues.
    """
    if queue.exchange.type == "direct":
        return
    with app.connection_for_write() as connection:
        if detect_quorum_queues(app, connection.transport.driver_type)[0]:
            bind_queue_to_native_delayed_delivery_exchange(connection, queue)


def _is_leader_only(request: Any) -> bool:
    return bool(getattr(request.task, "leader_only", False))


def _scheduled(consumer: Any) -> Iterator[tuple[Any, Any]]:
    """Give the leader-only requests that wait for their time, each with its timer."""
    # Like Celery's own `inspect scheduled`.
    for waiting in list(consumer.timer.schedule.queue):
        arguments = getattr(waiting.entry, "args", None) or ()
        request = arguments[0] if arguments else None
        if request is not None and hasattr(request, "task") and _is_leader_only(request):
            # With green threads what waits is a thread, which nothing but its own end keeps from running the entry.
            yield request, waiting if hasattr(waiting, "canceled") else waiting.entry


def return_unread(consumer: Any) -> None:
    """Have what Redis has yet to send go back to its queue; to be called when the main loop has ended.

    A worker asks Redis for the next message ahead, and Redis may give it one for a second after the last look at the
    answer. Celery looks again when the process ends; if that is killed meanwhile, the message is lost.
    """
    channel = consumer.task_consumer and consumer.task_consumer.channel
    connection = getattr(channel, "_in_poll", None)
    if connection:
        with contextlib.suppress(Empty, *consumer.connection_errors):
            if connection.can_read(getattr(channel, "brpop_timeout", 1) + 1):
                channel._brpop_read()  # noqa: SLF001 - as it does itself when it is closed


def _settle(pool: Any, request: Any) -> None:
    """Return to the queue what the pool has and will not begin, now that nothing begins any more.

    What a process was given it may have begun, and not have confirmed yet. Celery forgets that when it shuts down: how
    it ends is heard by nobody, the process waits 30 seconds for that, and then the message goes back to the queue.
    """
    if not isinstance(pool, PreforkPool):
        give_back(request)
        return
    job = request._apply_result()  # noqa: SLF001 - a weak reference
    processes = pool._pool  # type: ignore[attr-defined]  # noqa: SLF001 - the stubs err
    if job in getattr(processes, "outbound_buffer", ()):
        # Given to none.
        give_back(request)
    elif getattr(job, "_write_to", None) is not None:
        # What is confirmed is waited for.
        job._accepted = True  # noqa: SLF001


def _abort(consumer: Any, request: Any) -> None:
    """End a run in a process of its own; its message goes back to the queue when that is seen to be gone."""
    if request.worker_pid and isinstance(consumer.pool, PreforkPool):
        # Not by the pool's terminate_job(), after which the message counts as done.
        with contextlib.suppress(ProcessLookupError):
            os.kill(request.worker_pid, signal.SIGKILL)
