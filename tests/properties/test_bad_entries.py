"""What may stand in `beat_schedule`, and in which words the rest is refused."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from celery.beat import ScheduleEntry, Scheduler
from celery.schedules import crontab, schedule
from hypothesis import given
from hypothesis import strategies as st

from celery_pgleader.beat.entries import check_entries
from celery_pgleader.errors import ConfigurationError
from tests.properties.test_bad_settings import assert_clear, fuzzed, names, values

TASK = {"task": "proj.tick", "schedule": 1.0}
INTERVALS = "must be a number of seconds, a timedelta, or a schedule such as crontab()"


class Special(Scheduler):
    """Has entries of its own kind."""

    Entry = type("SpecialEntry", (ScheduleEntry,), {})


def refusal(entries: Any, scheduler: type = Scheduler) -> str:
    """Return the words in which entries are refused."""
    with pytest.raises(ConfigurationError) as refused:
        check_entries(entries, scheduler)
    return str(refused.value)


def scheduled(entries: dict[str, Any]) -> set[str]:
    """Return the names of the entries that Celery's own scheduler makes of these."""
    app: Any = Celery("shop", set_as_current=False)
    app.now = lambda: datetime.now().astimezone()
    app.conf.beat_schedule = entries
    return set(Scheduler(app=app).schedule)


@pytest.mark.parametrize(
    "entry",
    [
        TASK,
        {**TASK, "schedule": 0},
        {**TASK, "schedule": timedelta(minutes=1), "relative": True},
        {**TASK, "schedule": crontab(minute=5), "args": (1,), "kwargs": {"a": 1}, "options": {"queue": "x"}},
        {**TASK, "args": [1], "kwargs": None, "options": None},
        ScheduleEntry(name="tick", task="proj.tick", schedule=schedule(1.0), app=Celery(set_as_current=False)),
    ],
)
def test_entry_that_celery_accepts_is_accepted(entry: Any) -> None:
    check_entries({"tick": entry}, Scheduler)
    assert "tick" in scheduled({"tick": entry})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"task": None}, "['task'] = None: must be the name of a task"),
        ({"task": "a\0b"}, "['task'] = 'a\\x00b': must be the name of a task"),
        ({"schedule": "soon"}, f"['schedule'] = 'soon': {INTERVALS}"),
        ({"schedule": None}, f"['schedule'] = None: {INTERVALS}"),
        ({"schedule": math.nan}, f"['schedule'] = nan: {INTERVALS}"),
        ({"schedule": 1e300}, f"['schedule'] = 1e+300: {INTERVALS}"),
        ({"args": 5}, "['args'] = 5: must be a list or tuple"),
        ({"kwargs": [1]}, "['kwargs'] = [1]: must be a dict"),
        ({"options": "x"}, "['options'] = 'x': must be a dict"),
        (
            {"every": 5},
            " = 'every': must be one of args, kwargs, last_run_at, options, relative, schedule, task, total_run_count",
        ),
    ],
)
def test_unusable_field_is_refused(changed: dict[str, Any], message: str) -> None:
    """With the entry, the value and the rule."""
    assert refusal({"good": TASK, "tick": {**TASK, **changed}}) == f"beat_schedule['tick']{message}"


@pytest.mark.parametrize("entries", [None, [TASK], {5: TASK}, {"": TASK}, {"\ud800": TASK}, {"tick": "x"}, {"tick": 5}])
def test_schedule_without_names_or_entries_is_refused(entries: Any) -> None:
    assert_clear(refusal(entries), "beat_schedule")


def test_entry_of_its_own_kind_needs_a_name_and_a_task_only() -> None:
    """Its scheduler knows the fields."""
    check_entries({"tick": {**TASK, "schedule": "every day", "enabled": True}}, Special)
    assert refusal({"tick": {"schedule": 1}}, Special).startswith("beat_schedule['tick']['task'] = None")


entry_values = values | st.timedeltas() | st.builds(schedule, st.floats(0, 1e6))


@fuzzed
@given(
    entries=st.dictionaries(
        names,
        values
        | st.dictionaries(st.sampled_from(["task", "schedule", "args", "kwargs", "options", "relative"]), entry_values)
        | st.builds(
            lambda changed: {**TASK, **changed}, st.dictionaries(st.sampled_from([*TASK, "args"]), entry_values)
        ),
        min_size=1,
        max_size=3,
    )
)
def test_any_entry_is_refused_clearly_or_usable(entries: dict[str, Any]) -> None:
    """Usable is what Celery's own scheduler can be made of."""
    try:
        check_entries(entries, Scheduler)
    except ConfigurationError as error:
        assert_clear(str(error), "beat_schedule")
        return
    assert set(entries) <= scheduled(entries)
