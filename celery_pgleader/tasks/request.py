"""How a worker treats a leader-only task between its reception and its run."""

from __future__ import annotations

from celery.worker import state
from celery.worker.request import Request

from celery_pgleader.tasks.trust_page import reader


class LeaderRequest(Request):
    """A request that goes back to the leader queue if its time to run comes when this node does not lead."""

    def revoked(self) -> bool:
        """Tell whether it is not to be run; asked right before it is handed to the pool."""
        if super().revoked():
            # Who asks has reserved it, perhaps again after it was given back.
            state.task_ready(self)
            return True
        if reader.may_begin():
            return False
        # A leader that is shutting down consumes still: it would be given the same message again.
        if not (reader.is_shut() and reader.term()):
            give_back(self)
        return True


def give_back(request: Request) -> None:
    """Return a request's message to its queue. To be called in the worker's main loop only."""
    state.task_ready(request)
    if reader.is_shut():
        # What Celery puts off until the loop's next round has to wait for all that runs if there is none.
        request._on_reject = request.message.reject_log_error  # type: ignore[attr-defined]  # noqa: SLF001
    request.reject(requeue=True)
    # Whoever has it in hand still is to let go of it.
    request._already_revoked = True  # type: ignore[attr-defined]  # noqa: SLF001 - as Celery does
