"""What a worker does with the message of a leader-only task."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from celery.contrib.migrate import republish
from celery.utils.log import get_logger
from celery.worker import strategy

from celery_pgleader.config import election_of
from celery_pgleader.tasks.leader_only import queue_name

logger = get_logger(__name__)

# What Celery puts before the routing key of a message that RabbitMQ itself lets wait for its `eta`.
DELAY = re.compile(r"^(?:[01]\.){28}")


def leader_only(task: Any, app: Any, consumer: Any, **kwargs: Any) -> Callable[..., Any]:
    """Return the message handler of a leader-only task, as `Task.Strategy` has to.

    A message from the leader queue is run if this worker leads, and otherwise goes back there. One from any other
    queue was sent by a program that did not know the task to be leader-only: it goes to the leader queue, under the
    same task id. A worker that takes no part in the election sends it on all the same.
    """
    run = strategy.default(task, app, consumer, **kwargs)
    node = getattr(consumer.controller, "pgleader", None)
    queue = node.leader_queue.name if node is not None else queue_name(election_of(app))

    def handle(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **options: Any) -> Any:
        if DELAY.sub("", message.delivery_info.get("routing_key", "")) != queue:
            _forward(message)
        elif node is not None and not node.leadership.trusted():
            message.reject_log_error(logger, consumer.connection_errors, requeue=True)
        else:
            return run(message, body, ack, reject, callbacks, **options)
        return None

    def _forward(message: Any) -> None:
        logger.info("pgleader: forwarding leader-only task %s[%s] to %s", task.name, message.headers.get("id"), queue)
        try:
            with app.producer_or_acquire() as producer:
                producer.maybe_declare(app.amqp.queues[queue])
                republish(producer, message, exchange="", routing_key=queue)  # type: ignore[arg-type]  # the stubs err
        except Exception:
            # Whatever is wrong with sending, receiving goes on, and nothing is lost.
            logger.exception("pgleader: could not forward %s[%s]", task.name, message.headers.get("id"))
            message.reject_log_error(logger, consumer.connection_errors, requeue=True)
        else:
            message.ack_log_error(logger, consumer.connection_errors)

    return handle
