"""Has Celery's default scheduler keep in memory what it keeps in a file, and use the file for moments only."""

from __future__ import annotations

import shelve
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from celery.beat import ScheduleEntry
from celery.utils.log import get_logger

from celery_pgleader.beat.slot_keeper import SlotKeeper

logger = get_logger(__name__)


class Remembered(dict[str, Any]):
    """Stands for the open file."""

    def __init__(self, write: Callable[[], None]) -> None:
        """Begin empty; `write` is called for `sync`."""
        super().__init__()
        self.sync = write

    def close(self) -> None:
        """Do nothing: the scheduler has synced, and nothing is open."""


class FileForMoments:
    """What a `PersistentScheduler` gets in front, next to `TermBound`.

    The ledger knows when each entry was last run. The file tells a first leader what was run before there was a ledger,
    and a beat that takes over what the last leader has run. So it is read when a term begins and written while the lock
    is held, as the scheduler opens it, but closed again at once. What goes wrong with it is not the term's trouble.
    """

    # Stand for what the scheduler's class brings.
    schedule_filename: str
    _store: Any

    keeper: SlotKeeper
    holds: Callable[[], bool]

    _is_new = False
    _has_told = False

    def setup_schedule(self) -> None:
        """Set it up, and close what a class of the user's has opened by itself."""
        super().setup_schedule()  # type: ignore[misc]  # the scheduler's
        if isinstance(self._store, shelve.Shelf):
            shelf, self._store = self._store, Remembered(self._write)
            self._store.update(shelf)
            with self._forgiven():
                shelf.close()

    def _open_schedule(self) -> Remembered:
        remembered = Remembered(self._write)
        with self._forgiven():
            with self._opened() as file:
                found = dict(file)
            entries = found.get("entries", {})
            if not all(isinstance(entry, ScheduleEntry) for entry in entries.values()):
                raise TypeError("what it holds is no schedule")
            remembered.update(found)
            self._is_new = not entries
        return remembered

    def _write(self) -> None:
        # Until leaders run the schedule, a file that was found may be that of a beat which goes on for now.
        if not (self._is_new or self.keeper.runs_the_schedule()) or not self.holds():
            return
        with self._forgiven(), self._opened() as file:
            for key, value in self._store.items():
                file[key] = value

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        with closing(super()._open_schedule()) as file:  # type: ignore[misc]  # the scheduler's
            if isinstance(file, shelve.Shelf):
                # With it, closing the file writes what was only read.
                file.writeback = False  # type: ignore[attr-defined]  # the stubs leave it out
            yield file

    @contextmanager
    def _forgiven(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - files, formats and pickles fail in any way
            if not self._has_told:
                logger.warning(
                    "pgleader: the schedule file %s cannot be used, which matters only when you go back to a beat: %r",
                    self.schedule_filename,
                    error,
                )
            self._has_told = True
