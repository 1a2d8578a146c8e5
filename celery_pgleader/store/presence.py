"""What a node says of itself in the table of nodes, and whether it is to stand."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version

from celery_pgleader.config import Config
from celery_pgleader.election import Presence, Standing
from celery_pgleader.postgres import Session
from celery_pgleader.store import sql as statements


@dataclass(frozen=True)
class Abilities:
    """What a node can run.

    Attributes:
        entries: names of its schedule's entries; none if the scheduler keeps them elsewhere.
        schedule: a hash of what these entries are.
        unfit: why it cannot run the schedule; none if it can.

    """

    entries: tuple[str, ...] | None = None
    schedule: str | None = None
    unfit: str | None = None


class NodePresence(Presence):
    """Keeps one node's row, through whichever session the node has."""

    def __init__(self, config: Config, node: str, abilities: Abilities) -> None:
        """Prepare.

        Args:
            config: in which election, with which priority and version.
            node: its name.
            abilities: what it can run.

        """
        self._config = config
        self._node = node
        self._abilities = abilities
        self._instance = uuid.uuid4()
        self._started_at = datetime.now(timezone.utc)
        self._on_hold = False

    @property
    def stands_back(self) -> str | None:
        """Why the node does not stand, as far as it knows itself; none if it does."""
        if self._on_hold:
            return "on hold"
        return "its priority is 0" if self._config.priority == 0 else self._abilities.unfit

    def hold(self, *, on: bool) -> None:
        """Have the node stand back, or stand again."""
        self._on_hold = on

    def announce(self, session: Session) -> Standing:
        """Write the node's row; return what is ordered."""
        row = session.execute(
            statements.ANNOUNCE,
            {
                **self.parameters(),
                "election": self._config.election,
                "node": self._node,
                "instance": self._instance,
                "priority": self._config.priority,
                "stands_back": self.stands_back,
                "schedule": self._abilities.schedule,
                "app_version": self._config.app_version,
                "package_version": version("celery-pgleader"),
                "clock": time.time(),
                "started_at": self._started_at,
            },
        ).fetchone()
        assert row is not None
        stands_back, asked_for = row
        return Standing(not stands_back and self.stands_back is None, asked_for)

    def parameters(self) -> Mapping[str, object]:
        """Return what a term is minted by."""
        entries = self._abilities.entries
        return {"may_lead": self.stands_back is None, "entries": None if entries is None else list(entries)}
