"""The schedule file: no leader needs it, no two fight over it, and a beat that takes over from them can use it."""

from __future__ import annotations

import dbm
import errno
import json
import logging
import shelve
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from celery import Celery
from celery.beat import PersistentScheduler, Scheduler

from celery_pgleader.beat import LeaderBeat, leader_beat
from celery_pgleader.config import Config
from celery_pgleader.election import Elector, Leadership, Term
from celery_pgleader.election.lock_session import LockSession
from celery_pgleader.store import LEDGER_TERMS, EntryRecord, Superseded
from celery_pgleader.threads import Ending
from celery_pgleader.worker.candidate import Candidate
from tests.support.eventually import eventually
from tests.support.memory import MemoryLedger

HOUR = timedelta(hours=1)
PUBLISHED = "select max(slot) from pgleader.slots where entry = 'report' and state = 'published'"
CONFIG = Config(database_url="host=nowhere", election="shop")
WARNING = "pgleader: the schedule file %s cannot be used, which matters only when you go back to a beat: "
FAMILY = {"schedule" + suffix for suffix in PersistentScheduler.known_suffixes}


class Fleet:
    """Nodes with one ledger, in memory, that lead one after the other; `report` is due once, in the first term."""

    def __init__(self, folder: Path) -> None:
        """Begin half an hour after a slot that nobody has claimed."""
        self.slot = datetime.now(timezone.utc) - HOUR / 2
        self.app = make_app()
        self.ledger = MemoryLedger()
        self.ledger.records["report"] = EntryRecord("shop.report", "every 1:00:00", self.slot - HOUR, self.slot - HOUR)
        self.file = folder / "schedule"
        self.raised: list[BaseException] = []
        self._terms = 0

    def lead(self, scheduler: Any = PersistentScheduler, file: str | None = None) -> Reign:
        """Begin a term."""
        self._terms += 1
        return Reign(self, self._terms, scheduler, str(self.file) if file is None else file)

    def go_back(self, file: Path | None = None) -> Any:
        """Return the entry as a beat has it that is started now, with Celery's own scheduler."""
        beat = PersistentScheduler(app=make_app(), schedule_filename=str(file or self.file))
        entry = beat.schedule["report"]
        beat.close()
        return entry

    def check_going_back(self, file: Path | None = None) -> None:
        """A beat goes on where the leader has ended, and sends nothing at once."""
        entry = self.go_back(file)
        assert entry.last_run_at == self.slot
        assert not entry.is_due().is_due


class Reign:
    """A term, and its beat in a thread of its own."""

    def __init__(self, fleet: Fleet, number: int, scheduler: Any, file: str) -> None:
        """Begin it."""
        self._term = Term(number, "shop", f"node{number}", number)
        self._leadership = Leadership()
        self._leadership.gain(self._term, float("inf"), "elected")
        self._ended = Ending()
        self._fleet = fleet
        self._tidied = fleet.ledger.calls.count("prune")
        self.beat = LeaderBeat(fleet.app, scheduler, file, CONFIG, self._leadership)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.beat.run(self._term, self._ended)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self._fleet.raised.append(error)

    def await_published(self) -> None:
        """Wait until the slot that is due has been published."""
        eventually(lambda: self._fleet.raised or self._fleet.ledger.outcomes)
        assert not self._fleet.raised

    def await_begin(self) -> None:
        """Wait until the beat has ticked, after which it tidies the ledger up."""
        eventually(lambda: self._fleet.raised or self._fleet.ledger.calls.count("prune") > self._tidied)
        assert not self._fleet.raised

    def end(self, *, by_choice: bool = True) -> None:
        """End the term, and wait until the beat has ended; without a choice, the next leader may be there already."""
        self.lose(by_choice=by_choice)
        self.await_end()

    def lose(self, *, by_choice: bool) -> None:
        """End the term."""
        self._leadership.lose(self._term, "the test is over", by_choice=by_choice)
        self._ended.set()

    def await_end(self) -> None:
        """Wait until the beat has ended."""
        self._thread.join(30)
        assert not self._thread.is_alive()


def make_app() -> Any:
    """Return an app whose `report` is run every hour."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.beat_schedule = {"report": {"task": "shop.report", "schedule": HOUR}}
    return app


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """Give a fleet."""
    made = Fleet(tmp_path)
    monkeypatch.setattr(leader_beat, "Ledger", lambda *_: made.ledger)
    return made


def leave_stock_file(file: Path, ago: timedelta = 240 * HOUR) -> None:
    """Leave the file of a beat that has ended so long ago."""
    beat = PersistentScheduler(app=make_app(), schedule_filename=str(file))
    beat.schedule["report"].last_run_at = datetime.now(timezone.utc) - ago
    beat.close()


def files(folder: Path) -> dict[str, bytes]:
    """Return what is in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Whatever is the matter with it


def garbage(file: Path) -> None:
    """Fill all that may be the file with noise."""
    for name in FAMILY:
        file.with_name(name).write_bytes(b"\x00\xffnoise")


def cut_short(file: Path) -> None:
    """Leave the half of the index that Python's own `dbm` has written."""
    index_without_data(file)
    file.with_name("schedule.dir").write_text("'entries', (0, 4")


def index_without_data(file: Path) -> None:
    """Leave what Celery itself stumbles over: to Python's own `dbm`, the entries are there, and empty."""
    file.with_name("schedule.dat").touch()
    file.with_name("schedule.dir").write_text("'entries', (0, 47)\n'tz', (512, 18)\n")


def other_entries(entries: Any) -> Callable[[Path], None]:
    """Return what leaves the file of some other program."""

    def leave(file: Path) -> None:
        with shelve.open(str(file)) as other:
            other["entries"] = entries

    return leave


def gone_class(file: Path) -> None:
    """Leave an entry whose class is not there any more."""
    with dbm.open(str(file), "c") as other:
        other["entries"] = b"cno_such_module\nEntry\n."


def folder_in_its_place(file: Path) -> None:
    """Let nothing be opened under its names."""
    for name in FAMILY:
        file.with_name(name).mkdir()


STATES: dict[str, Callable[[Path], None]] = {
    "none": lambda _: None,
    "of a beat": leave_stock_file,
    "an index without data": index_without_data,
    "entries that are none": other_entries({"report": "every hour"}),
    "a list of entries": other_entries(["report"]),
    "a class that is gone": gone_class,
}
BROKEN: dict[str, Callable[[Path], None]] = {"garbage": garbage, "cut short": cut_short}


@pytest.mark.parametrize("state", STATES)
def test_leader_leads_and_beat_can_follow_whatever_is_in_the_file(fleet: Fleet, state: str) -> None:
    """Once something has been sent, the file is what a beat needs that takes over."""
    STATES[state](fleet.file)
    reign = fleet.lead()
    reign.await_published()
    reign.end()
    assert not fleet.raised
    assert {path.name for path in fleet.file.parent.iterdir()} <= FAMILY
    fleet.check_going_back()


@pytest.mark.parametrize("state", BROKEN)
def test_leader_leads_and_beat_can_follow_where_the_file_is_broken(fleet: Fleet, state: str) -> None:
    """The beat may begin with a new file, as Celery does then. It sends nothing at once."""
    BROKEN[state](fleet.file)
    reign = fleet.lead()
    reign.await_published()
    reign.end()
    assert not fleet.raised
    assert not fleet.go_back().is_due().is_due


@pytest.mark.parametrize(
    "place",
    [
        "{folder}/none/schedule",
        "{folder}/a file/schedule",
        "{folder}/a folder/schedule",
        # A file system in which not even root can make a file.
        "/sys/schedule",
        "/proc/schedule",
    ],
)
def test_leader_leads_where_no_file_can_be_made(fleet: Fleet, place: str, caplog: pytest.LogCaptureFixture) -> None:
    """It says so once in a term."""
    folder = fleet.file.parent
    (folder / "a file").touch()
    (folder / "a folder").mkdir()
    folder_in_its_place(folder / "a folder" / "schedule")
    path = place.format(folder=folder)
    reign = fleet.lead(file=path)
    reign.await_published()
    reign.end()
    assert not fleet.raised
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line.startswith(WARNING % path) for line in said] == [True]


class Locked:
    """What `shelve` is where another process has the file open: that of GNU's dbm is locked for as long."""

    @staticmethod
    def open(*_: Any, **__: Any) -> Any:
        """Fail as it does."""
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")


class Full:
    """What `shelve` is where the disk is full, or the file system was mounted for reading."""

    class Shelf(shelve.Shelf[Any]):
        """A file that nothing can be written to."""

        def __setitem__(self, *_: Any) -> None:
            """Fail as it does."""
            raise OSError(errno.ENOSPC, "No space left on device")

    @classmethod
    def open(cls, *_: Any, **__: Any) -> Any:
        """Open one that is empty."""
        return cls.Shelf({})


@pytest.mark.parametrize("persistence", [Locked, Full])
def test_leader_leads_while_file_is_locked_or_disk_is_full(
    fleet: Fleet, persistence: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """As it does without a file."""
    reign = fleet.lead(type("Hindered", (PersistentScheduler,), {"persistence": persistence}))
    reign.await_published()
    reign.end()
    assert not fleet.raised
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


# More than one


def test_old_and_new_leader_do_not_fight_over_one_file(fleet: Fleet) -> None:
    """When a leader loses the lead, the next one opens the file while it still ends."""
    reign = fleet.lead()
    reign.await_published()
    for _ in range(60):
        reign.lose(by_choice=False)
        following = fleet.lead()
        reign.await_end()
        following.await_begin()
        reign = following
    reign.end()
    assert not fleet.raised
    assert {path.name for path in fleet.file.parent.iterdir()} <= FAMILY
    fleet.check_going_back()


REWRITE = """
import shelve, sys
while True:
    try:
        with shelve.open(sys.argv[1], writeback=True) as file:
            file["entries"] = {}
            file["more"] = "x" * 5000
            del file["more"]
    except Exception:
        pass
    print(flush=True)
"""


@pytest.fixture
def rewritten(fleet: Fleet) -> Iterator[Callable[[], object]]:
    """Have another process write the file over and over; give what waits until it has done so once more."""
    with subprocess.Popen([sys.executable, "-c", REWRITE, str(fleet.file)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process.stdout.readline
        process.kill()


def test_leader_leads_while_another_process_rewrites_the_file(fleet: Fleet, rewritten: Callable[[], object]) -> None:
    """Whatever the two make of the file."""
    for _ in range(30):
        rewritten()
        reign = fleet.lead()
        reign.await_published()
        reign.end()
    assert not fleet.raised


def test_leader_that_sends_nothing_leaves_the_file_of_a_beat_alone(fleet: Fleet) -> None:
    """As in a move, while the beat goes on and the leader is paused."""
    leave_stock_file(fleet.file)
    before = files(fleet.file.parent)
    fleet.ledger.records["report"] = replace(fleet.ledger.records["report"], paused=True)
    reign = fleet.lead()
    eventually(lambda: fleet.ledger.rows)
    reign.end()
    assert [row.reason for row in fleet.ledger.rows] == ["paused"]
    assert files(fleet.file.parent) == before


def test_leader_that_sends_nothing_writes_what_leaders_before_it_have_sent(fleet: Fleet) -> None:
    """Into the file of its own host, so that it does not matter to a beat which of them led last."""
    reign = fleet.lead()
    reign.await_published()
    reign.end()
    other = fleet.file.with_name("other")
    leave_stock_file(other)
    reign = fleet.lead(file=str(other))
    reign.await_begin()
    reign.end()
    assert not fleet.raised
    fleet.check_going_back(other)


# The end of a term


def test_leader_that_lost_the_lead_writes_nothing(fleet: Fleet) -> None:
    """The file may be the next leader's by then."""
    reign = fleet.lead()
    reign.await_published()
    leave_stock_file(fleet.file)
    before = files(fleet.file.parent)
    reign.end(by_choice=False)
    assert files(fleet.file.parent) == before


def test_leader_that_was_superseded_writes_nothing(fleet: Fleet) -> None:
    """Also where nobody but the ledger has told it."""
    reign = fleet.lead()
    reign.await_published()
    leave_stock_file(fleet.file)
    before = files(fleet.file.parent)
    fleet.ledger.error = Superseded()
    reign.beat.look()
    reign.await_end()
    assert files(fleet.file.parent) == before
    assert not fleet.raised


def test_leader_that_leaves_has_written_the_file_before_the_lock_is_free(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent last is in it, so that neither `beat` nor `-B` sends it again."""
    file, found = str(tmp_path / "schedule"), []
    release = LockSession.release

    def look_and_release(session: LockSession, reason: str) -> None:
        with shelve.open(file) as kept:
            found.append(kept["entries"]["report"].last_run_at)
        release(session, reason)

    monkeypatch.setattr(LockSession, "release", look_and_release)
    app = make_app()
    app.conf.beat_schedule["report"]["schedule"] = 0.3
    candidate = Candidate(
        app, "a", Config(database_url=database, election="shop"), "celery.beat:PersistentScheduler", file
    )
    with psycopg.connect(database, autocommit=True) as observer:
        candidate.start()
        eventually(candidate.leadership.trusted)
        eventually(lambda: observer.execute(PUBLISHED).fetchone() != (None,))
        candidate.stop(30)
        assert (found[0],) == observer.execute(PUBLISHED).fetchone()


@pytest.mark.parametrize("by_choice", [True, False], ids=["by choice", "by the server"])
def test_lock_counts_as_held_when_a_term_has_ended_by_choice(database: str, *, by_choice: bool) -> None:
    """And not where the session was ended."""
    config = Config(database_url=database, election="shop")
    leadership, seen = Leadership(), []
    elector = Elector(config, "a", leadership=leadership, open_session=partial(LockSession.open, terms=LEDGER_TERMS))
    elector.start()
    term = leadership.wait(60)
    assert term is not None
    leadership.subscribe(lambda change: seen.append(leadership.holds(change.term)))
    if by_choice:
        elector.resign()
    else:
        with psycopg.connect(database, autocommit=True) as other:
            other.execute("select pg_terminate_backend(%s)", [term.backend_pid])
    eventually(lambda: len(seen) > 1)
    elector.stop()
    # The first time, it led.
    assert seen[:2] == [True, by_choice]
    assert not leadership.holds(term)


DIE_WRITING = """
import os, sys
from types import SimpleNamespace
from celery import Celery
from celery.beat import PersistentScheduler
from celery_pgleader.beat.schedule_file import FileForMoments

class Bound(FileForMoments, PersistentScheduler):
    holds = staticmethod(lambda: True)
    keeper = SimpleNamespace(runs_the_schedule=lambda: True)

class Killer:
    "Kills the process at one of the things that it does with files."
    def __init__(self, life):
        self.life = life
    def __call__(self, event, args):
        if event == "open" or event.startswith(("os.", "sqlite3.")):
            self.life -= 1
            if self.life == 0:
                os._exit(9)

def beat():
    app = Celery("shop", broker="memory://")
    app.conf.beat_schedule = {"report": {"task": "shop.report", "schedule": 3600.0}}
    return app

def write(life):
    scheduler = Bound(app=beat(), schedule_filename=sys.argv[1])
    scheduler.reserve(scheduler.schedule["report"])
    sys.addaudithook(Killer(life))
    scheduler.sync()
    os._exit(0)

for life in range(1, 1000):
    child = os.fork() or write(life)
    _, status = os.waitpid(child, 0)
    after = PersistentScheduler(app=beat(), schedule_filename=sys.argv[1])
    print(os.waitstatus_to_exitcode(status), after.schedule["report"].is_due().is_due, flush=True)
    after.close()
    if status == 0:
        break
"""


def test_beat_can_use_what_a_leader_leaves_that_dies_while_it_writes(fleet: Fleet) -> None:
    """At whichever of its steps: the beat starts, and sends nothing at once."""
    leave_stock_file(fleet.file, ago=HOUR / 2)
    command = [sys.executable, "-W", "ignore", "-c", DIE_WRITING, str(fleet.file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    *died, last = [line.split() for line in done.stdout.splitlines()]
    assert last == ["0", "False"]
    assert died
    assert died == [["9", "False"]] * len(died)


def test_failing_sync_and_close_cost_no_term(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    """Nor is the node's next term any the worse."""

    class Failing(PersistentScheduler):
        def sync(self) -> None:
            raise OSError("no sync")

        def close(self) -> None:
            super().close()
            raise OSError("no close")

    reign = fleet.lead(Failing)
    reign.await_published()
    reign.end()
    assert not fleet.raised
    said = {record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING}
    assert said == {
        "pgleader: the scheduler could not write down its state, and goes on",
        "pgleader: the scheduler could not be closed",
    }


# Classes of the user's own


class Stock(PersistentScheduler):
    """Celery's, with what the stubs leave out."""

    schedule_filename: str
    _store: Any
    persistence: Any


class OwnSetup(Stock):
    """Adds to the schedule as it sets it up."""

    def setup_schedule(self) -> None:
        """Add something."""
        super().setup_schedule()
        self._store["more"] = self.schedule_filename


class OwnOpening(Stock):
    """Opens the file by itself, as the default scheduler's parts are left out."""

    def setup_schedule(self) -> None:
        """Open it and keep it open."""
        self._store = shelve.open(self.schedule_filename, writeback=True)  # noqa: SIM115 - as such classes do
        self._store.setdefault("entries", {})
        self.merge_inplace(self.app.conf.beat_schedule)
        self._store.update({"__version__": "1", "tz": self.app.conf.timezone, "utc_enabled": True})
        self.sync()


class OwnOpen(Stock):
    """Opens the file in a way of its own."""

    def _open_schedule(self) -> Any:
        return shelve.open(self.schedule_filename, writeback=True, protocol=2)


class OwnSync(Stock):
    """Does more when the state is written."""

    def sync(self) -> None:
        """Note when."""
        self._store["synced"] = datetime.now(timezone.utc)
        super().sync()
        self._store.sync()


class OwnShelf(Stock):
    """Has another kind of file."""

    persistence = SimpleNamespace(open=lambda name, **_: shelve.DbfilenameShelf(name, writeback=True))


OWN: list[Any] = [OwnSetup, OwnOpening, OwnOpen, OwnSync, OwnShelf]


@pytest.mark.parametrize("scheduler", OWN)
def test_classes_of_ones_own_do_not_fight_over_one_file(fleet: Fleet, scheduler: Any) -> None:
    """When a leader loses the lead, the next one opens the file while it still ends; and a beat can follow."""
    reign = fleet.lead(scheduler)
    reign.await_published()
    for _ in range(20):
        reign.lose(by_choice=False)
        following = fleet.lead(scheduler)
        reign.await_end()
        following.await_begin()
        reign = following
    reign.end()
    assert not fleet.raised
    fleet.check_going_back()


class Json(Scheduler):
    """Keeps its state in a file of another kind, which it asks for by the name that schedulers are given."""

    def __init__(self, *args: Any, schedule_filename: str, **kwargs: Any) -> None:
        """Take note of the file."""
        self._file = Path(schedule_filename)
        super().__init__(*args, **kwargs)

    def setup_schedule(self) -> None:
        """Read it."""
        super().setup_schedule()
        runs = json.loads(self._file.read_text()) if self._file.exists() else {}
        for name, entry in self.schedule.items():
            entry.total_run_count = runs.get(name, 0)

    def sync(self) -> None:
        """Write it."""
        self._file.write_text(json.dumps({name: entry.total_run_count for name, entry in self.schedule.items()}))


def test_file_that_a_class_keeps_by_itself_goes_from_leader_to_leader(fleet: Fleet) -> None:
    """It is the one that `-s` names, and only who holds the lock writes it."""
    reign = fleet.lead(Json)
    reign.await_published()
    reign.end()
    assert json.loads(fleet.file.read_text()) == {"report": 1}
    following = fleet.lead(Json)
    following.await_begin()
    fleet.file.write_text(json.dumps({"report": 7}))
    following.end(by_choice=False)
    assert json.loads(fleet.file.read_text()) == {"report": 7}
    assert not fleet.raised
