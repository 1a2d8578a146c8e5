"""The facts of the election, each with a real Postgres and, where one has to die or hang, a real process."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from celery_pgleader.config import Config
from celery_pgleader.election import Change, Elector, Leadership, Term
from celery_pgleader.election.lock_session import LockSession
from celery_pgleader.election.observer import observe
from celery_pgleader.election.state import Phase
from celery_pgleader.postgres import open_session
from example_app.servers import EmbeddedPostgres
from tests.support.eventually import eventually
from tests.support.fleet import Fleet, Member, gathered

PATIENCE = 60.0
LOCK = 4242
DEFAULT_POLL = Config(database_url="host=127.0.0.1").poll_interval


class Standing:
    """Electors of one election in this process, and all that they were told."""

    def __init__(self, stack: ExitStack, url: str, **settings: Any) -> None:
        """Begin without an elector."""
        self._stack = stack
        self.config = Config(database_url=url, **settings)
        self.electors: list[Elector] = []
        self.changes: list[Change] = []
        self.times: list[float] = []
        # Terms that were trusted still when the next one began.
        self.trusted_twice: list[Term] = []

    def add(self, node: str, **collaborators: Any) -> Elector:
        """Start an elector."""
        elector = Elector(self.config, node, leadership=Leadership(), **collaborators)
        elector.leadership.subscribe(self._note)
        elector.start()
        self._stack.callback(elector.stop, PATIENCE)
        self.electors.append(elector)
        return elector

    def _note(self, change: Change) -> None:
        if change.gained:
            terms = (elector.leadership.term for elector in self.electors)
            self.trusted_twice += [term for term in terms if term is not None and term != change.term]
        self.times.append(time.monotonic())
        self.changes.append(change)

    def overlaps(self) -> list[float]:
        """Return for how many seconds each new leader and the one before it both led."""
        told = list(zip(self.times, self.changes, strict=True))
        gained = [(at, change.term) for at, change in told if change.gained]
        ended = {change.term: at for at, change in told if not change.gained}
        return [max(0.0, ended[old] - at) for (_, old), (at, _) in itertools.pairwise(gained)]

    def await_losses(self, number: int) -> None:
        """Wait until leadership was lost so many times."""
        eventually(lambda: len([c for c in self.changes if not c.gained]) >= number, timeout=PATIENCE)

    def await_leader(self, *, other_than: Elector | None = None) -> Elector:
        """Wait until somebody leads, and nobody else does."""

        def leaders() -> list[Elector]:
            return [e for e in self.electors if e is not other_than and e.leadership.trusted()]

        eventually(leaders, timeout=PATIENCE)
        (leader,) = leaders()
        return leader

    def assert_sound(self) -> None:
        """Check that terms rose, and that no two overlapped."""
        gained = [change.term.number for change in self.changes if change.gained]
        assert gained == sorted(set(gained))
        led = None
        for change in self.changes:
            assert (led is None) == change.gained, self.changes
            led = change.term if change.gained else None


@pytest.fixture
def standing() -> Iterator[Callable[..., Standing]]:
    """Make groups of electors that are stopped at the end."""
    with ExitStack() as stack:
        yield lambda url, **settings: Standing(stack, url, **settings)


@pytest.fixture
def fleet(database: str, tmp_path: Path) -> Iterator[Fleet]:
    """Give processes that share an election, with a ttl of two seconds."""
    environment = {"FLEET_DATABASE_URL": database, "FLEET_LOCK": str(LOCK), "FLEET_TTL": "2"}
    with gathered(environment, tmp_path) as members:
        yield members


def await_successor(elector: Elector) -> None:
    """Wait until an elector is in line for the lock."""
    eventually(lambda: elector.phase is Phase.SUCCESSOR, timeout=PATIENCE)


def one(url: str, query: str, *parameters: Any) -> Any:
    """Return the first value of a query's first row."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query, parameters or None)
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def lock_is_held(url: str) -> bool:
    """Tell whether anybody holds the fleet's lock."""
    return any(seat.role == "leader" for seat in observe(Config(database_url=url, lock=LOCK)))


def terms(fleet: Fleet) -> list[int]:
    """Return the terms in the order in which they began, as the members told."""
    told = [fact for member in fleet.members for fact in member.facts("leader") if fact["value"]]
    assert len(told) == len(fleet.terms)
    return [member.facts("leader")[0]["term"] for member in fleet.terms]


def ready(fleet: Fleet, count: int, url: str) -> Member:
    """Start members; return the leader once the others are in line, as far as there are places."""
    for number in range(count):
        fleet.add("python", f"node{number}")
    leader = fleet.await_leader()
    config = Config(database_url=url, lock=LOCK)
    eventually(lambda: len(observe(config)) == min(count, 3), timeout=PATIENCE)
    return leader


def test_successor_leads_after_a_crash(fleet: Fleet, database: str) -> None:
    """`kill -9` of the leader: a successor leads, in a higher term."""
    ready(fleet, 3, database).kill()
    fleet.await_leader()
    assert terms(fleet) == sorted(set(terms(fleet)))
    assert not fleet.overlaps


def test_second_successor_leads_after_two_crashes(fleet: Fleet, database: str) -> None:
    """A leader that dies as soon as it has taken office is replaced by the other successor."""
    ready(fleet, 5, database).kill()
    fleet.await_leader().kill()
    fleet.await_leader()
    assert len(terms(fleet)) == 3
    assert terms(fleet) == sorted(set(terms(fleet)))
    assert not fleet.overlaps


def test_stopped_leader_is_replaced_and_refuses_to_act(fleet: Fleet, database: str) -> None:
    """SIGSTOP: the server frees the lock by itself within the ttl; SIGCONT: the old leader trusts itself no more."""
    leader = ready(fleet, 3, database)
    stopped_at = time.time()
    leader.process.send_signal(signal.SIGSTOP)
    eventually(lambda: [m for m in fleet.members if m is not leader and m.leads], timeout=PATIENCE)
    (successor,) = [m for m in fleet.members if m is not leader and m.leads]
    assert successor.facts("leader")[-1]["at"] - stopped_at < 2 + 1, "the lock must be free within ttl + 1 s"

    leader.process.send_signal(signal.SIGCONT)
    leader.send(ask=True)
    eventually(lambda: leader.facts("trusted"), timeout=PATIENCE)
    assert [fact["value"] for fact in leader.facts("trusted")] == [False]
    eventually(lambda: not leader.leads, timeout=PATIENCE)
    assert successor.leads


def test_stopped_successor_loses_its_place_and_lock(fleet: Fleet, database: str) -> None:
    """A successor that hangs is granted the lock like any other; the server takes it away again."""
    leader = ready(fleet, 2, database)
    (successor,) = [member for member in fleet.members if member is not leader]
    successor.process.send_signal(signal.SIGSTOP)
    leader.kill()
    third = fleet.add("python", "third")
    eventually(lambda: third.leads, timeout=PATIENCE)
    successor.process.send_signal(signal.SIGCONT)
    successor.send(ask=True)
    eventually(lambda: successor.facts("trusted"), timeout=PATIENCE)
    assert [fact["value"] for fact in successor.facts("trusted")] == [False]


def test_resigning_leader_is_replaced(standing: Callable[..., Standing], database: str) -> None:
    """Who resigns is followed by another, and stands back for a while."""
    group = standing(database)
    for node in "abc":
        group.add(node)
    leader = group.await_leader()
    leader.resign(stand_back=PATIENCE)
    successor = group.await_leader(other_than=leader)
    assert successor is not leader
    assert leader.phase in {Phase.RELEASING, Phase.AWAY}
    assert [change.reason for change in group.changes if not change.gained] == ["resigned"]
    group.assert_sound()


def test_lone_node_leads_again_after_resigning(standing: Callable[..., Standing], database: str) -> None:
    """With nobody to hand over to, standing back ends."""
    group = standing(database, renew_interval=0.2)
    leader = group.add("alone")
    group.await_leader()
    leader.resign()
    eventually(lambda: len(group.changes) == 3, timeout=PATIENCE)
    group.await_leader()
    group.assert_sound()


def test_stopping_leader_is_replaced(standing: Callable[..., Standing], database: str) -> None:
    """A clean stop frees the lock at once, and stopping twice is harmless."""
    group = standing(database)
    for node in "ab":
        group.add(node)
    leader = group.await_leader()
    assert leader.stop(PATIENCE)
    assert leader.stop(PATIENCE)
    group.await_leader(other_than=leader)
    group.assert_sound()


def test_incident_6_leader_steps_down_when_its_session_is_ended(
    standing: Callable[..., Standing], database: str
) -> None:
    """The lock session is ended by an operator: step down, and be replaced (leoflow#1199)."""
    group = standing(database, renew_interval=0.4)
    for node in "abc":
        group.add(node)
    for number in range(20):
        leader = group.await_leader()
        term = leader.leadership.term
        assert term is not None
        one(database, "select pg_terminate_backend(%s)", term.backend_pid)
        group.await_losses(number + 1)
    group.await_leader()
    # The server says farewell before it frees the lock, and whoever asks for trust looks whether it has.
    assert not group.trusted_twice
    gained = [change.term.number for change in group.changes if change.gained]
    assert gained == sorted(set(gained))
    assert {change.reason for change in group.changes if not change.gained} <= {
        "the server has ended the session",
        "terminating connection due to administrator command",
    }


def test_end_of_the_session_is_noticed_during_a_renewal(database: str) -> None:
    """A leader whose session was ended during a renewal begins nothing, even before its elector has read why."""
    with open_session(database, "pgleader test", unresponsive_after=2) as session:
        session.open_line()
        session.pgconn.send_query_params(b"select 1", None)
        # The answer is there and was not read: that is no farewell.
        eventually(lambda: not session.is_quiet(), timeout=PATIENCE)
        assert session.is_quiet(asked=True)
        session.pgconn.get_result()
        session.pgconn.get_result()
        assert session.is_quiet()
        one(database, "select pg_terminate_backend(%s)", session.pgconn.backend_pid)
        eventually(lambda: not session.is_quiet(asked=True), timeout=PATIENCE)


def test_answer_to_a_renewal_is_not_taken_for_the_end_of_the_session(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer may be there by the time at which somebody looks who has asked before it began."""
    lock = LockSession.open(Config(database_url=database), "node")
    session = lock._session  # noqa: SLF001 - it has to be slow in the one moment that counts
    look = session.is_quiet
    answers: list[bool] = []

    def slow_look(*, asked: bool) -> bool:
        if not answers:
            # What `renew` does in the elector's thread.
            lock._asked += 1  # noqa: SLF001 - as above
            session.pgconn.send_query_params(b"select 1", None)
            eventually(lambda: not look(), timeout=PATIENCE)
        answers.append(look(asked=asked))
        return answers[-1]

    monkeypatch.setattr(session, "is_quiet", slow_look)
    assert lock.is_quiet()
    assert answers == [False, True]
    lock.close()


class LeakySession(LockSession):
    """Loses its locks behind the elector's back, as with a pooler that discards a session's state."""

    def renew(self, backend_pid: int, seconds: float) -> bool:
        """Renew what is not held any more."""
        self.release("lost")
        return super().renew(backend_pid, seconds)


def test_incident_1_lost_lock_is_noticed(standing: Callable[..., Standing], database: str) -> None:
    """A leader whose session lives but holds the lock no more steps down at its next renewal (oban#1488)."""
    group = standing(database, renew_interval=0.2)
    group.add("alone", open_session=LeakySession.open)
    eventually(lambda: len(group.changes) >= 2, timeout=PATIENCE)
    assert group.changes[1].reason == "the lock, or the latest term, is no longer this session's"
    group.assert_sound()


def test_incident_8_abandoned_wait_leaves_no_lock(standing: Callable[..., Standing], database: str) -> None:
    """A successor that gives up while the server grants it the lock leaves no lock behind (GreptimeDB#7670)."""
    group = standing(database)
    first = group.add("first")
    group.await_leader()
    for _ in range(5):
        waiting = group.add("waiting")
        await_successor(waiting)
        # Both at once: the lock is granted to one that no longer wants it.
        first.resign(stand_back=0)
        assert waiting.stop(PATIENCE)
        group.electors.remove(waiting)
        first = group.await_leader()


def test_election_survives_a_restart_of_the_server(
    standing: Callable[..., Standing], own_postgres: EmbeddedPostgres
) -> None:
    """Everybody's session ends; everybody comes back, and one leads, in a higher term."""
    group = standing(own_postgres.url(), renew_interval=0.4)
    for node in "abc":
        group.add(node)
    group.await_leader()
    # While the server stops, it ends one session after the other: a successor may lead for a moment in between.
    own_postgres.restart()
    group.await_losses(1)
    group.await_leader()
    before = len([change for change in group.changes if not change.gained])
    own_postgres.kill()
    own_postgres.start()
    group.await_losses(before + 1)
    group.await_leader()
    gained = [change.term.number for change in group.changes if change.gained]
    assert gained == sorted(set(gained))
    assert len(gained) >= 3


def test_crash_of_the_server_repeats_no_term(standing: Callable[..., Standing], own_postgres: EmbeddedPostgres) -> None:
    """The server crashes as soon as a term is minted: it must be in the log by then."""
    numbers = []
    for _ in range(4):
        group = standing(own_postgres.url(), ttl=1)
        elector = group.add("node")
        group.await_leader()
        own_postgres.kill()
        numbers.append(group.changes[0].term.number)
        elector.stop()
        own_postgres.start()
    assert numbers == sorted(set(numbers))


def test_absent_server_is_waited_for(
    standing: Callable[..., Standing], own_postgres: EmbeddedPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    """An elector starts without its database, says so once, and stands as soon as it is there."""
    url = own_postgres.url()
    own_postgres.stop()
    group = standing(url, ttl=2)
    elector = group.add("early")
    eventually(lambda: "no session with" in caplog.text, timeout=PATIENCE)
    eventually(lambda: elector._candidacy._election.failures >= 4, timeout=PATIENCE)  # type: ignore[union-attr]  # noqa: SLF001
    assert len([r for r in caplog.records if r.levelname == "WARNING" and "no session" in r.message]) == 1
    own_postgres.start()
    group.await_leader()


def test_unanswered_renewals_end_trust(standing: Callable[..., Standing], database: str, proxied: Any) -> None:
    """Renewals that get no answer end the term when the trust window ends, not when TCP gives up."""
    url, proxy = proxied(database)
    group = standing(url, ttl=2)
    leader = group.add("cut off")
    group.await_leader()
    proxy.deaf()
    eventually(lambda: not leader.leadership.trusted(), timeout=PATIENCE)
    eventually(lambda: len(group.changes) == 2, timeout=PATIENCE)
    assert group.changes[1].reason == "no renewal within the trust window"
    # The server, too, hears nothing, and lets others lead.
    other = standing(database, ttl=2)
    other.add("in reach")
    other.await_leader()
    proxy.restore()


def test_election_writes_no_errors_to_the_servers_log(
    standing: Callable[..., Standing], own_postgres: EmbeddedPostgres
) -> None:
    """Many slices, handovers and stops, and not one line of error, warning or lock wait."""
    url = own_postgres.url()
    one(url, "alter system set log_lock_waits = on")
    one(url, "alter system set log_min_messages = 'warning'")
    one(url, "select pg_reload_conf()")
    # Whoever asked before the server had started was told so.
    started = len(own_postgres.log.read_text(errors="replace"))
    group = standing(url)
    for number in range(5):
        group.add(f"node{number}")
    leader = group.await_leader()
    slices = eventually_count_slices(url, at_least=6)
    assert slices >= 6
    leader.resign()
    group.await_leader(other_than=leader)
    for elector in group.electors:
        elector.stop(PATIENCE)
    noise = [
        line
        for line in own_postgres.log.read_text(errors="replace")[started:].splitlines()
        if any(word in line for word in ("ERROR", "FATAL", "WARNING", "still waiting", "acquired ", "EOF"))
    ]
    assert not noise


def eventually_count_slices(url: str, at_least: int) -> int:
    """Wait until waiting sessions have begun a number of new statements; return how many."""
    seen: set[Any] = set()

    def enough() -> bool:
        with psycopg.connect(url, autocommit=True) as connection:
            query = "select pid, query_start from pg_stat_activity where wait_event = 'advisory'"
            seen.update(connection.execute(query).fetchall())
        return len(seen) >= at_least

    eventually(enough, timeout=PATIENCE)
    return len(seen)


def test_election_does_not_hold_up_vacuum_or_concurrent_indexes(
    standing: Callable[..., Standing], database: str
) -> None:
    """However many wait for the lock, old snapshots are gone within a second."""
    one(database, "create table t as select generate_series(1, 10000) as n")
    group = standing(database)
    for number in range(8):
        group.add(f"node{number}")
    group.await_leader()
    eventually(lambda: one(database, "select count(*) = 2 from pg_stat_activity where wait_event = 'advisory'"))
    one(database, "delete from t")

    def index_is_built_in_time() -> bool:
        began = time.monotonic()
        one(database, "create index concurrently on t (n)")
        # It waits for two generations of snapshots, each under a second. Others may use the machine, too.
        return time.monotonic() - began < 2 * 1.0

    eventually(index_is_built_in_time, timeout=PATIENCE)

    def dead_rows_go() -> bool:
        one(database, "vacuum t")
        return bool(one(database, "select pg_relation_size('t') = 0"))

    eventually(dead_rows_go, timeout=PATIENCE)


def test_role_with_login_only_can_elect(standing: Callable[..., Standing], own_postgres: EmbeddedPostgres) -> None:
    """No table, no schema, no right beyond LOGIN."""
    one(own_postgres.url(), "create role plain login")
    one(own_postgres.url(), "create database shop")
    one(own_postgres.url(), "revoke all on schema public from public")
    group = standing(own_postgres.url("shop", user="plain"))
    group.add("a")
    group.add("b")
    leader = group.await_leader()
    leader.stop(PATIENCE)
    group.await_leader(other_than=leader)
    group.assert_sound()


def test_hostile_defaults_do_no_harm(standing: Callable[..., Standing], database: str) -> None:
    """What a database administrator may have set for everybody must not cut slices short or end sessions."""
    name = one(database, "select current_database()")
    for setting in (
        "statement_timeout = 100",
        "idle_session_timeout = 300",
        "lock_timeout = 50",
        "default_transaction_isolation = 'serializable'",
        "default_transaction_read_only = on",
    ):
        one(database, f'alter database "{name}" set {setting}')
    group = standing(database)
    leader = group.add("a")
    group.await_leader()
    follower = group.add("b")
    await_successor(follower)
    quiet = threading.Event()
    assert not quiet.wait(2 * leader._config.renew_interval)  # noqa: SLF001 - let renewals and slices go by
    assert len(group.changes) == 1


def test_elections_are_independent(standing: Callable[..., Standing], database: str) -> None:
    """Each name has its own leader; so has each explicit lock."""
    groups = [standing(database, election="a"), standing(database, election="b"), standing(database, lock=7)]
    for group in groups:
        group.add("x")
        group.add("y")
    for group in groups:
        group.await_leader()
        group.assert_sound()


def test_incident_2_nodes_with_the_same_name_are_told_apart(standing: Callable[..., Standing], database: str) -> None:
    """Leadership is a session's, not a name's: of two nodes called the same, one leads (oban-py#32)."""
    group = standing(database)
    group.add("same")
    group.add("same")
    leader = group.await_leader()
    leader.resign(stand_back=PATIENCE)
    group.await_leader(other_than=leader)
    group.assert_sound()


@pytest.mark.parametrize(
    ("poll_interval", "seconds"), [(2.0, 6.0), pytest.param(DEFAULT_POLL, 30.0, marks=pytest.mark.long)]
)
def test_idle_election_sends_few_statements(
    standing: Callable[..., Standing], own_postgres: EmbeddedPostgres, poll_interval: float, seconds: float
) -> None:
    """A leader and ten followers: a connection each, under five statements a second in all, 0.2 from the idlest.

    Of followers that ask more often, more in the same measure.
    """
    url = own_postgres.url()
    more = DEFAULT_POLL / poll_interval
    group = standing(url, poll_interval=poll_interval)
    for number in range(11):
        group.add(f"node{number}")
    group.await_leader()
    eventually(lambda: len(observe(group.config)) == 3, timeout=PATIENCE)
    eventually(lambda: len([e for e in group.electors if e.phase is Phase.FOLLOWER]) == 8, timeout=PATIENCE)
    one(url, "alter system set log_line_prefix = '%p '")
    one(url, "alter system set log_statement = 'all'")
    one(url, "select pg_reload_conf()")
    begin = len(own_postgres.log.read_text(errors="replace").splitlines())
    threading.Event().wait(seconds)
    lines = own_postgres.log.read_text(errors="replace").splitlines()[begin:]
    pids = [int(line.split()[0]) for line in lines if "statement:" in line or "execute <unnamed>" in line]
    query = "select pid, application_name from pg_stat_activity where application_name like 'pgleader%'"
    with psycopg.connect(url) as connection:
        sessions = {pid for pid, _ in connection.execute(query).fetchall()}
    assert len(sessions) == 11
    sent = Counter(pid for pid in pids if pid in sessions)
    assert 1 <= sum(sent.values()) / seconds < 5 * more, sent
    waiting = {seat.backend_pid for seat in observe(group.config)}
    assert all(sent[pid] / seconds < 0.2 * more for pid in sessions if pid not in waiting), sent
    print(f"{sum(sent.values()) / seconds:.2f} statements a second from {len(sessions)} sessions: {sent}")
