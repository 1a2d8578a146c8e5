"""PostgreSQL advisory-lock leader election for Celery workers.

    celery -A proj worker --pgleader

Names are loaded when first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_pgleader.election import Change, Leadership, Term
    from celery_pgleader.errors import (
        ConfigurationError,
        LeadershipLost,
        NotificationError,
        PgLeaderError,
        ServerUnsuitable,
    )
    from celery_pgleader.notifications.registry import on_notification
    from celery_pgleader.notifications.sending import notify
    from celery_pgleader.signals import leadership_gained, leadership_lost
    from celery_pgleader.slot import Slot, current_slot
    from celery_pgleader.standalone import LeaderElector
    from celery_pgleader.tasks import LeaderOnlyTask
    from celery_pgleader.tasks.run_leadership import RunLeadership, current_leadership
    from celery_pgleader.worker import PgLeader

    __version__: str

_HOMES = {
    "Change": "election",
    "ConfigurationError": "errors",
    "LeaderElector": "standalone",
    "LeaderOnlyTask": "tasks",
    "Leadership": "election",
    "LeadershipLost": "errors",
    "NotificationError": "errors",
    "PgLeader": "worker",
    "PgLeaderError": "errors",
    "RunLeadership": "tasks.run_leadership",
    "ServerUnsuitable": "errors",
    "Slot": "slot",
    "Term": "election",
    "current_leadership": "tasks.run_leadership",
    "current_slot": "slot",
    "leadership_gained": "signals",
    "leadership_lost": "signals",
    "notify": "notifications.sending",
    "on_notification": "notifications.registry",
}

__all__ = [
    "Change",
    "ConfigurationError",
    "LeaderElector",
    "LeaderOnlyTask",
    "Leadership",
    "LeadershipLost",
    "NotificationError",
    "PgLeader",
    "PgLeaderError",
    "RunLeadership",
    "ServerUnsuitable",
    "Slot",
    "Term",
    "current_leadership",
    "current_slot",
    "leadership_gained",
    "leadership_lost",
    "notify",
    "on_notification",
]


if not TYPE_CHECKING:
    # Where types are checked, a name that is not there is an error.
    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version  # noqa: PLC0415 - reading metadata takes milliseconds

            return version("celery-pgleader")
        if name in _HOMES:
            return getattr(import_module(f"celery_pgleader.{_HOMES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
