"""What has to be so, whatever happens: looked at whenever something is committed, taken by the broker, or trusted."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from celery_pgleader.slot import HEADER, NOTIFICATION_HEADER
from tests.simulation.broker import Message
from tests.simulation.postgres import Tables, Transaction
from tests.simulation.world import BEGINNING

if TYPE_CHECKING:
    from tests.simulation.nodes import Node
    from tests.simulation.scene import Scene
    from tests.simulation.worker import Run


# Where nothing goes wrong, after this time from the start a notification is dispatched within that of its commit.
CALM, PROMPT = 2.0, 1.0


class Checks:
    """Looks at one history while it is played."""

    def __init__(self, scene: Scene) -> None:
        """Begin to look."""
        self._scene = scene
        self._world = scene.world
        self.highest_term = 0
        # Ids of messages that the broker has taken, by what they were sent for.
        self._slots: dict[tuple[str, datetime], set[str]] = defaultdict(set)
        self._notifications: dict[int, str] = {}
        # When each notification was committed, and its key, and when it was sent.
        self._committed: dict[int, datetime] = {}
        self._keys: dict[int, tuple[str | None, datetime]] = {}
        # Leader-only runs that go on, and tasks of which one has ended.
        self._runs: list[Run] = []
        self._done: set[int] = set()
        scene.server.database.committing = self._on_commit
        scene.broker.checks = self

    @property
    def _tables(self) -> Tables:
        return self._scene.server.database.tables

    def is_at_rest(self) -> bool:
        """Tell whether, after the last fault, somebody leads and everything is done that is due."""
        return self._scene.leader is not None and not self.what_is_left()

    def what_is_left(self) -> str:
        claimed = [key for key, row in self._tables["slots"].items() if row["state"] == "claimed"]
        undone = set(range(len(self._scene.history.works))) - self._done
        if claimed:
            return f"is claimed and not settled: {claimed[0]}"
        if self._tables["notifications"]:
            return f"is not dispatched: {sorted(self._tables['notifications'])}"
        if undone or self._scene.queue.given or self._scene.queue.waiting:
            return f"has not run, or is still in the queue: {sorted(undone)}"
        return self._what_is_unaccounted()

    def _what_is_unaccounted(self) -> str:
        leader = self._scene.leader
        for name, period in self._scene.history.schedule.items():
            row = self._tables["entries"].get(("shop", name))
            if row is None:
                return f"is not in the ledger: {name}"
            if leader is None:
                return "nobody leads"
            now = BEGINNING + timedelta(seconds=self._world.now + leader.process.wall)
            if (row["last_slot"] or row["since"]) < now - timedelta(seconds=2 * period + 0.5):
                return f"is not accounted for: slots of {name} after {row['last_slot']}"
        return ""

    def at_the_end(self) -> None:
        """Look whether every slot is accounted for once."""
        accounted: dict[tuple[str, datetime], int] = defaultdict(int)
        for (_, entry, slot), row in self._tables["slots"].items():
            step = timedelta(seconds=self._scene.history.schedule[entry])
            instant, number = slot, 0
            while instant <= row["through"]:
                accounted[entry, instant] += 1
                instant, number = instant + step, number + 1
            if number != row["slots"]:
                self._world.violated(f"{row['slots']} slots of {entry} from {slot} through {row['through']}")
            if row["state"] == "published" and not self._slots[entry, slot]:
                self._world.violated(f"{entry} of {slot} counts as published, and was not")
        for (_, entry), row in self._tables["entries"].items():
            step = timedelta(seconds=self._scene.history.schedule[entry])
            instant = row["anchor"] + ((row["since"] - row["anchor"]) // step + 1) * step
            while instant <= (row["last_slot"] or row["since"]):
                if accounted.pop((entry, instant), 0) != 1:
                    self._world.violated(f"{entry} of {instant} is not accounted for once")
                instant += step
        for entry, slot in accounted:
            self._world.violated(f"{entry} of {slot} is accounted for, and never was due")

    # While it goes on.

    def on_trust(self, node: Node) -> None:
        """Look at the other nodes, when one may have begun to trust that it leads."""
        mine = node.trusted_term
        if mine is None:
            return
        for other in self._scene.nodes:
            theirs = other.trusted_term if other is not node else None
            if theirs is not None and not self._has_not_heard(other if theirs < mine else node):
                self._world.violated(f"{node} trusts its term {mine}, and {other} its term {theirs}")

    def _has_not_heard(self, node: Node) -> bool:
        """Tell whether a leader's session was ended from outside, and it cannot know of that yet."""
        term = node.process.asked(lambda: node.participant.leadership.term)
        client = self._scene.server.clients[term.backend_pid]
        return client.backend.taken_away and client.is_quiet(asked=True)

    def on_run(self, run: Run) -> None:
        self._world.tell(run.process, f"runs {run.key} in term {run.term}")
        latest = self._tables["elections"]["shop"]["term"]
        if run.term > latest:
            self._world.violated(f"{run.key} runs in term {run.term}, and the latest is {latest}")
        for other in self._runs:
            gone = other.process.dead or other.process.paused_until > self._world.now
            if other.term < run.term and not gone and other.process.disturbed_until < other.began:
                self._world.violated(f"{run.key} runs in term {run.term} beside {other.key} in term {other.term}")
        self._runs.append(run)

    def on_end(self, run: Run) -> None:
        self._runs.remove(run)
        self._done.add(run.key)

    def _on_commit(self, transaction: Transaction) -> None:
        if transaction.fenced is not None:
            election, term = transaction.fenced
            latest = self._tables["elections"][election]["term"]
            if latest != term:
                self._world.violated(f"what was written for term {term} was accepted in term {latest}")
        for (table, key), row in transaction.written.items():
            look = getattr(self, f"_on_{table}", None)
            if look is not None:
                look(key, row, transaction)

    def _on_elections(self, key: str, row: dict[str, Any], _transaction: Transaction) -> None:
        before = self._tables["elections"].get(key)
        if before is not None and before["term"] == row["term"]:
            return
        if row["term"] <= self.highest_term:
            self._world.violated(f"term {row['term']} comes after term {self.highest_term}")
        self.highest_term = row["term"]

    def _on_slots(self, key: tuple[str, str, datetime], row: dict[str, Any], _transaction: Transaction) -> None:
        _, entry, slot = key
        before = self._tables["slots"].get(key)
        if before is not None and row["state"] == "claimed":
            self._world.violated(f"{entry} of {slot} is claimed again")
        if row["state"] == "published" and not self._slots[entry, slot]:
            self._world.violated(f"{entry} of {slot} is written down as published, and was not")

    def _on_notifications(self, key: int, row: dict[str, Any] | None, transaction: Transaction) -> None:
        if row is not None:
            self._committed.setdefault(key, self._scene.server.clock())
            self._keys[key] = row["key"], row["sent_at"]
        elif key not in self._notifications and ("dead_letters", key) not in transaction.written:
            self._world.violated(f"notification {key} is gone, and was not dispatched")

    def on_message(self, message: Message) -> None:
        if HEADER in message.headers:
            slot = message.headers[HEADER]
            self._on_slot_message(slot["entry"], datetime.fromisoformat(slot["at"]), message.task_id)
        elif NOTIFICATION_HEADER in message.headers:
            self._on_notification_message(message.headers[NOTIFICATION_HEADER]["id"], message.task_id)

    def _on_slot_message(self, entry: str, at: datetime, task_id: str) -> None:
        self._slots[entry, at].add(task_id)
        if len(self._slots[entry, at]) > 1:
            self._world.violated(f"{entry} of {at} is published under the ids {sorted(self._slots[entry, at])}")
        if ("shop", entry, at) not in self._tables["slots"]:
            self._world.violated(f"{entry} of {at} is published, and was not claimed")

    def _on_notification_message(self, number: int, task_id: str) -> None:
        if self._notifications.setdefault(number, task_id) != task_id:
            self._world.violated(f"notification {number} is dispatched under two ids")
        key, sent_at = self._keys.get(number, (None, None))
        took = (self._scene.server.clock() - self._committed[number]).total_seconds()
        if not self._scene.history.faults and self._world.now - took > CALM and took > PROMPT:
            self._world.violated(f"notification {number} is overlooked for {took:.3f} s")
        if key is None or sent_at is None:
            return
        for other, (other_key, _) in self._keys.items():
            if other_key == key and other not in self._notifications and self._committed[other] < sent_at:
                self._world.violated(f"notification {number} overtakes {other}, with the key {key}")
