"""The runs of slots: one at a time for an entry, one ever for a slot, and none longer than its process."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest

from celery_pgleader.config import Config
from celery_pgleader.postgres import open_session
from celery_pgleader.store.runs import Runs, entry_key, run_key, task_key
from tests.support.eventually import eventually

PATIENCE = 60.0
NOON = datetime(2026, 1, 15, 12, tzinfo=timezone.utc)
MINUTE = timedelta(minutes=1)
TASK_ID = "91b70b16-ecec-5c5f-be5b-2ffb62fe860d"


@pytest.fixture
def root(database: str) -> Iterator[psycopg.Connection[Any]]:
    """Give a connection to the database."""
    with open_session(database, "test", unresponsive_after=5) as session:
        yield session


@pytest.fixture
def process(database: str, root: object) -> Iterator[Callable[[str], Runs]]:
    """Make what keeps the runs of a process."""
    made: list[Runs] = []

    def make(node: str) -> Runs:
        runs = Runs(Config(database_url=database, election="shop"), node)
        made.append(runs)
        return runs

    yield make
    for session in [runs._session for runs in made]:  # noqa: SLF001 - it ends with its process
        if session is not None:
            session.close()


def kill(root: psycopg.Connection[Any], node: str) -> None:
    """End the session of a process, as the server does when the process dies."""
    name = f"pgleader runs {node}"
    root.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = %s", [name])
    eventually(
        lambda: not root.execute("select from pg_stat_activity where application_name = %s", [name]).fetchall(),
        timeout=PATIENCE,
    )


def claimed(root: psycopg.Connection[Any], entry: str, minute: int, state: str = "published") -> datetime:
    """Write down a slot of an entry; return it."""
    slot = NOON + minute * MINUTE
    root.execute(
        "insert into pgleader.slots (election, entry, slot, through, state, term, task_id)"
        " values ('shop', %s, %s, %s, %s, 1, %s)",
        [entry, slot, slot, state, uuid.uuid4()],
    )
    return slot


def locks(root: psycopg.Connection[Any]) -> int:
    """Return how many locks of runs are held in this database."""
    row = root.execute(
        "select count(*) from pg_locks where locktype = 'advisory' and objsubid = 1 and granted"
        " and database = (select oid from pg_database where datname = current_database())"
    ).fetchone()
    assert row is not None
    return int(row[0])


def test_keys_are_stable_and_differ() -> None:
    """They fit a bigint, are the same for ever, and differ from each other."""
    keys = [
        run_key("a", "b"),
        run_key("ab"),
        entry_key("shop", "tick"),
        entry_key("shop", "tock"),
        entry_key("bazaar", "tick"),
        task_key("shop"),
        task_key(TASK_ID),
    ]
    assert len(set(keys)) == len(keys)
    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert entry_key("shop", "tick") == 1932678145528286171
    assert task_key(TASK_ID) == 7268956446281554470


def test_run_is_held_by_one_process(process: Callable[[str], Runs], root: psycopg.Connection[Any]) -> None:
    """Until it ends it; others are free."""
    one, other = process("a"), process("b")
    assert one.begin([1])
    assert not other.begin([1])
    assert other.begin([2])
    one.end([1])
    assert other.begin([1])
    assert not one.begin([1])
    other.end([1, 2])
    assert locks(root) == 0


def test_run_is_held_by_one_thread(process: Callable[[str], Runs], root: psycopg.Connection[Any]) -> None:
    """Also of one process, whose session might take a lock again: of many exactly one begins."""
    runs = process("a")
    for key in range(1, 6):
        answers: list[bool] = []
        barrier = threading.Barrier(4)

        def run(key: int = key, answers: list[bool] = answers, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(PATIENCE)
            answers.append(runs.begin([key]))

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(answers) == [False, False, False, True]
    assert locks(root) == 5
    runs.end(range(1, 6))
    assert locks(root) == 0
    assert process("b").begin(range(1, 6))


def test_run_takes_all_its_locks_or_none(process: Callable[[str], Runs], root: psycopg.Connection[Any]) -> None:
    """One that is held elsewhere leaves none of the others behind."""
    one, other = process("a"), process("b")
    assert other.begin([2])
    assert not one.begin([1, 2, 3])
    assert locks(root) == 1
    assert other.begin([1, 3])
    other.end([1, 2, 3])
    assert one.begin([1, 2, 3])
    assert not one.begin([3, 4])
    assert other.begin([4])


def test_runs_end_with_their_process(process: Callable[[str], Runs], root: psycopg.Connection[Any]) -> None:
    """With its session: others may begin at once, also where the process had more than one run."""
    one, other = process("a"), process("b")
    assert one.begin([1])
    assert one.begin([2, 3])
    kill(root, "a")
    assert other.begin([1, 2])


def test_process_opens_a_new_session_for_its_runs(
    process: Callable[[str], Runs], root: psycopg.Connection[Any]
) -> None:
    """What it still runs is not begun again there, and can be ended, though its locks are gone."""
    one, other = process("a"), process("b")
    assert one.begin([1])
    kill(root, "a")
    assert not one.begin([1]), "it goes on in this very process"
    assert one.begin([2])
    assert not other.begin([2])
    assert other.begin([1])
    one.end([1, 2])
    assert not one.begin([1]), "now it is the other's"
    other.end([1])
    assert one.begin([1, 2])


def test_absent_database_is_an_error_and_holds_nothing(
    process: Callable[[str], Runs], root: psycopg.Connection[Any]
) -> None:
    """It is an error of psycopg; nothing is held then, and the next question has another try."""
    runs = process("a")
    assert runs.begin([1])
    name = root.info.dbname
    with psycopg.connect(root.info.dsn, dbname="postgres", autocommit=True) as elsewhere:
        elsewhere.execute(f'alter database "{name}" allow_connections false'.encode())
        kill(root, "a")
        with pytest.raises(psycopg.OperationalError):
            runs.begin([2])
        with pytest.raises(psycopg.OperationalError):
            runs.has_finished(TASK_ID)
        with pytest.raises(psycopg.OperationalError):
            runs.end([1])
        elsewhere.execute(f'alter database "{name}" allow_connections true'.encode())
    assert runs.begin([1, 2])


def test_finished_task_is_known_everywhere(process: Callable[[str], Runs], root: psycopg.Connection[Any]) -> None:
    """Everybody knows from then on; it is written down once, and says nothing of other tasks."""
    one, other = process("a"), process("b")
    assert not one.has_finished(TASK_ID)
    one.finish(TASK_ID)
    assert other.has_finished(TASK_ID)
    assert not other.has_finished(str(uuid.uuid4()))
    written = root.execute("select task_id::text, finished_at from pgleader.finished").fetchall()
    other.finish(TASK_ID)
    assert root.execute("select task_id::text, finished_at from pgleader.finished").fetchall() == written
    assert [task_id for task_id, _ in written] == [TASK_ID]


def test_pruned_slot_is_not_written_again(process: Callable[[str], Runs], root: psycopg.Connection[Any]) -> None:
    """Nothing is written down of what was pruned."""
    process("a").skip("shop", "tick", NOON, "overlap")
    assert root.execute("select from pgleader.slots").fetchall() == []


@pytest.mark.parametrize(
    ("state", "becomes"),
    [
        ("claimed", ("skipped", "overlap")),
        ("published", ("skipped", "overlap")),
        ("skipped", ("skipped", None)),
        ("expired", ("expired", None)),
    ],
)
def test_slot_that_was_not_run_is_skipped_with_the_reason(
    process: Callable[[str], Runs], root: psycopg.Connection[Any], state: str, becomes: tuple[str, str | None]
) -> None:
    """It is skipped with the reason, unless something else has become of it; the publisher's word comes too late."""
    runs = process("a")
    slot, other = claimed(root, "tick", 1, state), claimed(root, "tick", 2, state)
    runs.skip("bazaar", "tick", slot, "overlap")
    runs.skip("shop", "tick", slot, "overlap")
    rows = root.execute("select state, reason from pgleader.slots order by slot").fetchall()
    assert rows == [becomes, (state, None)]
    assert other > slot


def test_session_of_a_run_is_not_ended_for_being_idle(
    process: Callable[[str], Runs], root: psycopg.Connection[Any]
) -> None:
    """Whatever the role's default is: the server would free the locks of a run that goes on."""
    root.execute(f'alter database "{root.info.dbname}" set idle_session_timeout = 100'.encode())
    runs = process("a")
    assert runs.begin([1])
    with psycopg.connect(root.info.dsn, autocommit=True) as idle:
        # What an idle session without our setting comes to, at the latest by then.
        pid = idle.info.backend_pid
        eventually(
            lambda: not root.execute("select from pg_stat_activity where pid = %s", [pid]).fetchall(), timeout=PATIENCE
        )
    assert locks(root) == 1
    assert not process("b").begin([1])
