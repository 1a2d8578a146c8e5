"""Checks the schedule in the configuration, so that an entry that cannot work does not hold the others up."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from celery.beat import ScheduleEntry

from celery_pgleader.errors import refused

FIELDS = set(inspect.signature(ScheduleEntry).parameters)
KINDS = {"args": (list | tuple, "a list or tuple"), "kwargs": (Mapping, "a dict"), "options": (Mapping, "a dict")}


def check_entries(entries: Any, scheduler: type) -> None:
    """Refuse entries of `beat_schedule` that Celery, or the ledger, could make nothing of.

    Args:
        entries: the setting's value.
        scheduler: the class that is to run them; one with entries of its own kind knows best what these may be.

    Raises:
        ConfigurationError: the message names the entry, the value and the rule.

    """
    if not isinstance(entries, Mapping):
        raise refused("beat_schedule", entries, 'must be a dict such as {"tick": {"task": "proj.tick", "schedule": 1}}')
    for name, entry in entries.items():
        if not _is_name(name):
            raise refused("beat_schedule", name, "the name of an entry must be a non-empty string without NUL")
        if not isinstance(entry, ScheduleEntry):
            _check(f"beat_schedule[{name!r}]", entry, plain=getattr(scheduler, "Entry", None) is ScheduleEntry)


def _check(where: str, entry: Any, *, plain: bool) -> None:
    if not isinstance(entry, Mapping):
        raise refused(where, entry, 'must be a dict such as {"task": "proj.tick", "schedule": 1}')
    if not _is_name(entry.get("task")):
        raise refused(f"{where}['task']", entry.get("task"), "must be the name of a task")
    if not plain:
        return
    if unknown := [field for field in entry if field not in FIELDS]:
        raise refused(where, unknown[0], f"must be one of {', '.join(sorted(FIELDS - {'app', 'name'}))}")
    if not _is_schedule(entry.get("schedule")):
        rule = "must be a number of seconds, a timedelta, or a schedule such as crontab()"
        raise refused(f"{where}['schedule']", entry.get("schedule"), rule)
    for field, (kind, words) in KINDS.items():
        if entry.get(field) and not isinstance(entry[field], kind):
            raise refused(f"{where}[{field!r}]", entry[field], f"must be {words}")


def _is_name(value: Any) -> bool:
    """Tell whether Postgres can hold a value as the name of something."""
    if not isinstance(value, str) or not value or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_schedule(value: Any) -> bool:
    if isinstance(value, int | float):
        try:
            timedelta(seconds=value)
        except (ValueError, OverflowError):
            return False
        return True
    return isinstance(value, timedelta) or callable(getattr(value, "is_due", None))
