"""The numbers under which an election's locks stand in `pg_locks`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from psycopg import sql

from celery_pgleader.config import Config

# "pgl" in ASCII and a running number: 1885826048 for the lock itself, the next two for the places, one more for the
# place that is kept for a node which is asked for by name, and one for the turn to run leader-only tasks.
CLASSID = 0x70676C00
PLACES = (1, 2)
KEPT_PLACE = 3
TURN = 4
UINT32 = 2**32


@dataclass(frozen=True)
class LockKey:
    """An advisory lock key.

    Attributes:
        classid: `pg_locks.classid`.
        objid: `pg_locks.objid`.
        objsubid: `pg_locks.objsubid`: 1 for a key that is one `bigint`, 2 for one of two `int`.

    """

    classid: int
    objid: int
    objsubid: int

    def as_arguments(self) -> sql.Composable:
        """Return the key as the advisory lock functions take it."""
        if self.objsubid == 1:
            return sql.SQL("({})::bigint").format(_signed(self.classid << 32 | self.objid, 64))
        return sql.SQL("({})::int, ({})::int").format(_signed(self.classid, 32), _signed(self.objid, 32))


def leader_key(config: Config) -> LockKey:
    """Return the key of the lock whose holder leads."""
    if config.lock is not None:
        classid, objid = divmod(config.lock % 2**64, UINT32)
        return LockKey(classid, objid, 1)
    return LockKey(CLASSID, _objid(config), 2)


def place_key(config: Config, place: int) -> LockKey:
    """Return the key of a successor's place."""
    return LockKey(CLASSID + place, _objid(config), 2)


def turn_key(config: Config) -> LockKey:
    """Return the key of the lock of those whose leader-only tasks run."""
    return LockKey(CLASSID + TURN, _objid(config), 2)


def _objid(config: Config) -> int:
    # Nodes that share a lock must share the places, whatever they call their election.
    name = config.election if config.lock is None else f"lock {config.lock}"
    return int.from_bytes(hashlib.blake2s(name.encode(), digest_size=4).digest(), "big")


def _signed(number: int, bits: int) -> sql.Literal:
    return sql.Literal(number - 2**bits if number >= 2 ** (bits - 1) else number)
