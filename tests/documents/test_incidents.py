"""Failures that others have had, or that were seen here, and that must not happen: each has tests of its name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

INCIDENTS = {
    1: "a leader whose renewals fail, or whose row or session is taken away, leads on (oban#1488: for 19 days)",
    2: "two processes of one host take each other for themselves (oban-py#32)",
    3: "slots are sent twice, or not at all, when the lead changes around a full minute (sidekiq#6804)",
    4: "timing settings that cannot work are taken (redbeat#230: 430 restarts in 14 days)",
    5: "a pooler in transaction mode leaves the lock in somebody else's session (authentik#23876)",
    6: "the lock's session is ended, and nobody notices (leoflow#1199)",
    7: "the scheduler dies or hangs, and the leader leads on (procrastinate#1463, river#1161)",
    8: "a wait for the lock that was given up is granted it, and keeps it (GreptimeDB#7670)",
    9: "a claim that was begun before a handover succeeds after it (Yuzu#4015)",
    10: "a task is sent again after a crash, since its last run was not written down yet (celery#1876)",
    11: "a leader that was stopped across a due minute sends it when it wakes up",
    12: "payloads and channel names become SQL, or cannot be sent (platformatic/leader: at a single quote)",
    13: "a worker without the schedule is elected, and nobody knows (river#658)",
    14: "a password is shown",
    15: "a pool child that was forked again keeps the session of its dead parent alive",
    16: "deploys more frequent than an interval keep it from ever being due (django-celery-beat#634)",
}


def named() -> dict[int, list[str]]:
    """Return the tests that are named after an incident, by its number."""
    found: dict[int, list[str]] = {}
    for file in TESTS.rglob("test_*.py"):
        for number, name in re.findall(r"^def test_incident_(\d+)_(\w+)", file.read_text(), re.MULTILINE):
            found.setdefault(int(number), []).append(name)
    return found


def test_list_of_incidents_is_complete() -> None:
    """And no test is named after one that is not in it."""
    assert list(INCIDENTS) == list(range(1, 17))
    assert set(named()) <= set(INCIDENTS)


@pytest.mark.parametrize("number", INCIDENTS)
def test_every_incident_has_a_test(number: int) -> None:
    assert named().get(number), INCIDENTS[number]
