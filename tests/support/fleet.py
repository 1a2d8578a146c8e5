"""Processes that share an election, whatever they are written in; see `elector_process` for what they speak."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support.eventually import eventually

PATIENCE = 60.0
PYTHON_MEMBER = (sys.executable, str(Path(__file__).with_name("elector_process.py")))


class Member:
    """One process of a fleet, and what it has told so far."""

    def __init__(self, fleet: Fleet, kind: str, name: str, command: Sequence[str], log: Path) -> None:
        """Start the process.

        Args:
            fleet: hears of everything that the process tells.
            kind: what it is written in.
            name: unique in the fleet, and part of its session's `application_name`.
            command: the program.
            log: gets its stderr.

        """
        self.kind = kind
        self.name = name
        self.dead = False
        self._fleet = fleet
        self._log = log
        self._facts: list[dict[str, Any]] = []
        self._leads = False
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **fleet.environment, "FLEET_NAME": name},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                encoding="utf-8",
            )
        self._reader = threading.Thread(target=self._read, name=f"reader of {name}", daemon=True)
        self._reader.start()

    def __repr__(self) -> str:
        """Show what a failed test needs: the state, and the end of the log."""
        state = "dead" if self.dead else "leads" if self._leads else "follows"
        return f"<{self.name}: {state}; facts {self._facts[-5:]}; log {self._log.read_text()[-1000:]!r}>"

    @property
    def leads(self) -> bool:
        """Whether it said that it leads, and has not been ended since."""
        return self._leads and not self.dead

    def facts(self, event: str) -> list[dict[str, Any]]:
        """Return what it told of one kind, in order."""
        return [fact for fact in tuple(self._facts) if fact["event"] == event]

    def payloads(self) -> list[Any]:
        """Return the payloads of the notifications that it got, in order."""
        return [fact["payload"] for fact in self.facts("notification")]

    def send(self, **command: Any) -> None:
        """Give a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def notify(self, payload: Any, channel: str) -> None:
        """Have it send a notification, and see that it was sent."""
        before = len(self.facts("notified"))
        self.send(notify={"payload": payload, "channel": channel})
        eventually(lambda: len(self.facts("notified")) > before, timeout=PATIENCE)

    def kill(self) -> None:
        """End it with `kill -9`."""
        self.dead = True
        self.process.kill()
        self._finish()

    def stop(self) -> int:
        """Have it leave the election and end; return its exit code."""
        # Said before it is asked: from here on another may lead.
        self.dead = True
        self.send(stop=True)
        return self._finish()

    def _finish(self) -> int:
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            # A broken pipe is a command that it did not live to read.
            with suppress(BrokenPipeError):
                pipe.close()
        return code

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            fact = json.loads(line)
            self._facts.append(fact)
            if fact["event"] == "leader":
                self._leads = fact["value"]
                if self._leads:
                    self._fleet.note_leader(self)


class Fleet:
    """Members of one election."""

    def __init__(self, environment: Mapping[str, str], log_folder: Path) -> None:
        """Begin empty.

        Args:
            environment: tells the members about their election.
            log_folder: where their logs go.

        """
        self.environment = environment
        self.members: list[Member] = []
        self.overlaps: list[str] = []
        self.terms: list[Member] = []
        self._log_folder = log_folder
        self._noting = threading.Lock()

    def add(self, kind: str, name: str, command: Sequence[str] = PYTHON_MEMBER) -> Member:
        """Start a member."""
        member = Member(self, kind, name, command, self._log_folder / f"{name}.log")
        with self._noting:
            self.members.append(member)
        return member

    def alive(self) -> list[Member]:
        """Return the members that were not ended."""
        return [member for member in self.members if not member.dead]

    def await_leader(self) -> Member:
        """Wait until one leads."""

        def one_leads() -> list[Member]:
            return [member for member in self.alive() if member.leads]

        eventually(one_leads, timeout=PATIENCE)
        (leader,) = one_leads()
        return leader

    def note_leader(self, member: Member) -> None:
        """Remember that a member began to lead, and whether another had not ended by then."""
        with self._noting:
            self.terms.append(member)
            others = [other.name for other in self.members if other is not member and other.leads]
            if others:
                self.overlaps.append(f"{member.name} began to lead while {others} did")

    def end(self) -> None:
        """End everybody."""
        for member in self.members:
            if member.process.poll() is None:
                member.kill()


@contextmanager
def gathered(environment: Mapping[str, str], log_folder: Path) -> Iterator[Fleet]:
    """Give a fleet, and leave no process of it behind."""
    fleet = Fleet(environment, log_folder)
    try:
        yield fleet
    finally:
        fleet.end()
