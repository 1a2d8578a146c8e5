"""Celery's remote control of workers: `celery inspect pgleader`, `celery control pgleader_resign` and its like.

Both the worker and the command line import this module: each has to know of the commands. They are carried out in the
worker's main loop, so they ask for things and wait for nothing.
"""

from __future__ import annotations

from typing import Any

from celery.worker.control import control_command, inspect_command


@inspect_command(name="pgleader")
def show(panel: Any, **_: Any) -> dict[str, Any]:
    """Show this worker's part in the election."""
    participant = _participant(panel)
    return participant.info() if participant is not None else _takes_no_part()


@control_command(name="pgleader_resign", args=[("stand_back", float)], signature="[stand_back]")
def resign(panel: Any, stand_back: float | None = None, **_: Any) -> dict[str, str]:
    """Let another worker lead, and stand back for so many seconds."""
    participant = _participant(panel)
    if participant is None:
        return _takes_no_part()
    if participant.leadership.term is None:
        return {"ok": "does not lead"}
    participant.resign(stand_back)
    return {"ok": "resigns"}


@control_command(name="pgleader_hold")
def hold(panel: Any, **_: Any) -> dict[str, str]:
    """Lead no more, until told to campaign, or started again."""
    participant = _participant(panel)
    if participant is None:
        return _takes_no_part()
    participant.hold()
    return {"ok": "stands back"}


@control_command(name="pgleader_campaign")
def campaign(panel: Any, **_: Any) -> dict[str, str]:
    """Stand for the election again, and at once."""
    participant = _participant(panel)
    if participant is None:
        return _takes_no_part()
    participant.campaign()
    return {"ok": "stands for the election"}


def _participant(panel: Any) -> Any:
    return getattr(panel.consumer.controller, "pgleader", None)


def _takes_no_part() -> dict[str, str]:
    return {"error": "takes no part in an election"}
