"""What is restored of messages that earlier leaders had taken from Redis."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from celery_pgleader.election import Term
from celery_pgleader.tasks.orphans import GLANCE, LONG_GLANCE, Orphans


class Redis:
    """What Redis holds of messages that were taken, and the channel to it."""

    unacked_key = "unacked"

    def __init__(self, **taken: str) -> None:
        """Hold tags, and the queues that they are of."""
        self.taken = taken
        self.restored: list[str] = []
        self.qos = self

    @contextmanager
    def conn_or_acquire(self) -> Iterator[Redis]:
        yield self

    def hscan_iter(self, _key: str) -> Iterator[tuple[bytes, bytes]]:
        for tag, queue in self.taken.items():
            yield tag.encode(), json.dumps([{}, "", queue]).encode()

    def restore_by_tag(self, tag: str, _client: object) -> None:
        self.restored.append(tag)


class OtherLeaders(Orphans):
    """Those who have led before: some have a session, and some answer."""

    def __init__(self, redis: Redis, mine: set[str] | None, sessions: list[str], answers: dict[str, Any]) -> None:
        """Say how it is."""
        replies = [{node: answer} for node, answer in answers.items()]
        app = SimpleNamespace(
            control=SimpleNamespace(broadcast=lambda *_, **__: replies),
            connection_for_read=lambda: nullcontext(SimpleNamespace(default_channel=redis, connection_errors=())),
        )
        queue: Any = SimpleNamespace(name="leader-shop", held=lambda: mine)
        super().__init__(app, SimpleNamespace(), queue)  # type: ignore[arg-type]
        self._sessions = sessions

    def _look(self, _term: Term) -> tuple[list[str], list[str]]:
        return ["a", "b"], list(self._sessions)

    def attempt(self, *, ended: bool = False) -> float | None:
        """Try once, without waiting."""
        ending: Any = SimpleNamespace(wait=lambda _: None, is_set=lambda: ended)
        return self._attempt(Term(7, "shop", "c", 1), ending)


def test_message_that_no_worker_holds_is_restored() -> None:
    """Of the leader queue only, and neither what this worker has nor what an earlier leader has."""
    redis = Redis(mine="leader-shop", theirs="leader-shop", nobodys="leader-shop", ordinary="celery")
    leaders = OtherLeaders(redis, {"mine"}, ["a"], {"a": {"held": ["theirs"]}})
    assert leaders.attempt() == LONG_GLANCE, "they may die yet"
    assert redis.restored == ["nobodys"]


def test_one_attempt_is_enough_when_earlier_leaders_are_gone() -> None:
    """With nothing taken, no worker is asked."""
    redis = Redis(mine="leader-shop", nobodys="leader-shop")
    assert OtherLeaders(redis, {"mine"}, [], {}).attempt() is None
    assert redis.restored == ["nobodys"]
    assert OtherLeaders(Redis(ordinary="celery"), set(), ["a"], {}).attempt() is None


@pytest.mark.parametrize(
    ("mine", "answers", "ended"),
    [
        (set(), {}, False),
        (set(), {"b": {"held": []}}, False),
        (set(), {"a": {"error": "no such command"}}, False),
        (None, {"a": {"held": []}}, False),
        (set(), {"a": {"held": []}}, True),
    ],
    ids=["no answer", "of another", "older version", "no connection", "term over"],
)
def test_nothing_is_restored_in_doubt(*, mine: set[str] | None, answers: dict[str, Any], ended: bool) -> None:
    """An earlier leader that is there has to say what it has, and this worker has to lead still."""
    redis = Redis(nobodys="leader-shop")
    assert OtherLeaders(redis, mine, ["a"], answers).attempt(ended=ended) == GLANCE
    assert redis.restored == []
