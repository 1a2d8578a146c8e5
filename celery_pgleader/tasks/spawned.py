"""Imported by processes of the prefork pool that were spawned: unlike those that are forked, they inherit no guard.

It is the last of the modules that such a process imports, as `include` has them, so all tasks are there.
"""

import os

from celery import _state
from celery.utils.log import get_logger

from celery_pgleader.config import Config
from celery_pgleader.errors import ConfigurationError
from celery_pgleader.tasks.run_guard import RunGuard

logger = get_logger(__name__)


def guard_tasks() -> None:
    """Guard the tasks of the app that came from the parent, and of the one of the user's module."""
    for app in list(_state._get_active_apps()):  # type: ignore[attr-defined]  # noqa: SLF001 - the only list of them
        try:
            config = Config.from_app(app)
        except ConfigurationError as error:
            # A database that was named on the command line is known to the parent only.
            logger.warning("pgleader: tasks of %s in this process have no guard: %s", app.main, error)
        else:
            RunGuard(config, f"spawned {os.getpid()}").install(app)


# Another process may import it, too, such as a tool that imports all modules.
if os.environ.get("FORKED_BY_MULTIPROCESSING"):
    guard_tasks()
