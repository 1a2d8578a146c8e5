"""`LeaderElector` with a real Postgres: all that @platformatic/leader offers, without what is wrong with it.

`docs/seed-parity.md` says which of these tests answers to which behaviour of the seed.
"""

from __future__ import annotations

import json
import logging
import socket
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import psycopg
import pytest

from celery_pgleader import Change, LeaderElector, Term
from celery_pgleader.errors import ConfigurationError, NotificationError
from tests.support.eventually import eventually

PATIENCE = 60.0
PROBE = {"probe": True}
MOST_BYTES = 7999

HOSTILE_PAYLOADS: list[Any] = [
    {"a": "it's"},
    {"a": "''"},
    {"a": "'; create table injected(); --"},
    {"a": "'), pg_notify('other', '{}'); --", "b": "$$ $1 %s %(channel)s {0} \\' \\\\"},
    {"a": 'a "quoted" word', "'": '"'},
    {"a": "line\nfeed\ttab\u0000nul\u001funit\u2028separator"},
    {"grüße": "漢字 😀 é e\u0301"},
    {"nested": [{"list": [[], {}, [None, True, False, 1, -2.5, 1e100, 2**60]]}], "": ""},
]
HOSTILE_CHANNELS = [
    "Orders",
    'a "quoted" name',
    "it's",
    "x; drop table orders; --",
    "%s %(channel)s {}",
    " ",
    "*",
    "grüße 😀",
    "c" * 63,
]


class Ear:
    """A handler that remembers what it was given, apart from probes."""

    def __init__(self, then: Callable[[Any], object] = lambda _: None) -> None:
        self.heard: list[Any] = []
        self.reached = threading.Event()
        self._then = then

    def __call__(self, payload: Any) -> None:
        """Take a payload."""
        if payload == PROBE:
            self.reached.set()
        else:
            self.heard.append(payload)
            self._then(payload)


class Electorate:
    """The electors of one test, and a bystander's session."""

    def __init__(self, database: str, observer: psycopg.Connection[Any]) -> None:
        self.database = database
        self.observer = observer
        self._cleanup = ExitStack()

    def add(self, node: str = "first", **options: Any) -> LeaderElector:
        """Make an elector that is stopped with the test."""
        options = {"lock": 4242, "ttl": 5.0, "poll_interval": 10.0, "node": node, **options}
        elector = LeaderElector(self.database, **options)
        self._cleanup.callback(elector.stop)
        return elector

    def leader(self, node: str = "first", **options: Any) -> LeaderElector:
        """Start an elector and wait until it leads, and hears on its channels."""
        elector = self.add(node, **options)
        elector.start()
        assert elector.leadership.wait(PATIENCE) is not None
        self.await_hearing(options.get("channels", {}))
        return elector

    def successor(self, node: str = "second", **options: Any) -> LeaderElector:
        """Start an elector and wait until it stands in line behind the leader."""
        before = len(self.waiting())
        elector = self.add(node, **options)
        elector.start()
        eventually(lambda: len(self.waiting()) > before, timeout=PATIENCE)
        return elector

    def await_hearing(self, channels: Mapping[str, Any]) -> None:
        """Send probes until they are heard: a leader begins to listen a moment after it begins to lead."""

        def probe(channel: str, ear: Ear) -> bool:
            self.send(json.dumps(PROBE), channel)
            return ear.reached.is_set()

        for channel, ear in channels.items():
            if isinstance(ear, Ear):
                ear.reached.clear()
                eventually(partial(probe, channel, ear), timeout=PATIENCE)

    def send(self, text: str, channel: str) -> None:
        """Send a notification as any other program would."""
        self.observer.execute("select pg_notify(%s, %s)", [channel, text])

    def terminate(self, session: str) -> None:
        """End a session, named by its `application_name`, on the server's side, and wait until it is gone."""
        ended = self.observer.execute(
            "select pg_terminate_backend(pid, 10000) from pg_stat_activity where application_name = %s", [session]
        ).fetchall()
        assert ended == [(True,)]

    def sessions(self) -> list[str]:
        """Return the names of all sessions of electors."""
        rows = self.observer.execute(
            "select application_name from pg_stat_activity"
            " where datname = current_database() and application_name like 'pgleader %' order by 1"
        )
        return [name for (name,) in rows]

    def holders(self, lock: int = 4242) -> list[str]:
        """Return the names of the sessions that hold the lock."""
        return self._locks(lock, granted=True)

    def waiting(self, lock: int = 4242) -> list[str]:
        """Return the names of the sessions that wait for the lock."""
        return self._locks(lock, granted=False)

    def await_renewals(self, count: int, meanwhile: Callable[[], object] = lambda: None) -> set[str]:
        """Wait until the leader's session was seen to run so many statements; return their texts."""
        seen: dict[Any, str] = {}

        def enough() -> bool:
            meanwhile()
            rows = self.observer.execute(
                "select query_start, query from pg_stat_activity where application_name like 'pgleader leader %'"
                " and datname = current_database()"
            )
            seen.update(rows.fetchall())
            return len(seen) > count

        eventually(enough, timeout=PATIENCE)
        return set(seen.values())

    def end(self) -> None:
        """Stop everybody."""
        self._cleanup.close()

    def _locks(self, lock: int, *, granted: bool) -> list[str]:
        high, low = divmod(lock % 2**64, 2**32)
        rows = self.observer.execute(
            """
            select application_name
              from pg_locks join pg_stat_activity using (pid)
             where locktype = 'advisory' and granted = %s and objsubid = 1
               and classid::bigint = %s and objid::bigint = %s
               and database = (select oid from pg_database where datname = current_database())
            """,
            [granted, high, low],
        )
        return [name for (name,) in rows]


class Poller:
    """A consumer as people build them on an election.

    It works in cycles, in a thread of its own, while its elector leads. The gain of the lead, a notification and a
    timer that a cycle has set each ask for a cycle; what is asked for during a cycle is done after it.
    """

    def __init__(self, work: Callable[[Poller], object]) -> None:
        self.cycles: list[frozenset[str]] = []
        self.elector: LeaderElector | None = None
        self.on_asked: Callable[[], object] = lambda: None
        self._work = work
        self._asked: set[str] = set()
        self._turn = threading.Condition()
        self._timers: list[threading.Timer] = []
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="poller")
        self._thread.start()

    def ask(self, reason: str) -> None:
        """Ask for a cycle."""
        with self._turn:
            self._asked.add(reason)
            self._turn.notify()
        self.on_asked()

    def ask_later(self, seconds: float) -> None:
        """Ask for a cycle in a while."""
        timer = threading.Timer(seconds, self.ask, ["timer"])
        self._timers.append(timer)
        timer.start()

    def on_leadership_change(self, leads: bool) -> None:  # noqa: FBT001 - how it is called back
        """Begin with a cycle."""
        if leads:
            self.ask("gained")

    def on_notification(self, _payload: Any) -> None:
        """Do not work here: a handler that works holds up its channel."""
        self.ask("notification")

    def end(self) -> None:
        """End the thread and the timers."""
        for timer in self._timers:
            timer.cancel()
        with self._turn:
            self._ended = True
            self._turn.notify()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._ended or self._asked)
                if self._ended:
                    return
                reasons, self._asked = frozenset(self._asked), set()
            if self.elector is not None and self.elector.is_leader:
                self.cycles.append(reasons)
                self._work(self)


@pytest.fixture
def observer(database: str) -> Iterator[psycopg.Connection[Any]]:
    """Give a session of a bystander."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def electorate(database: str, observer: psycopg.Connection[Any]) -> Iterator[Electorate]:
    """Give electors, and stop them."""
    electorate = Electorate(database, observer)
    try:
        yield electorate
    finally:
        electorate.end()


@pytest.fixture
def make_poller(electorate: Electorate) -> Iterator[Callable[..., Poller]]:
    """Give a function that makes a poller whose elector leads."""
    with ExitStack() as cleanup:

        def make(work: Callable[[Poller], object]) -> Poller:
            poller = Poller(work)
            cleanup.callback(poller.end)
            ear = Ear(poller.on_notification)
            poller.elector = electorate.add(
                channels={"jobs": ear}, on_leadership_change=poller.on_leadership_change, poll_interval=3600
            )
            poller.elector.start()
            electorate.await_hearing({"jobs": ear})
            return poller

        yield make


# What the seed's own tests name.


def test_payload_is_sent_as_json(electorate: Electorate) -> None:
    """What is given to `notify` arrives, as JSON, at any session that listens; the sender need not stand."""
    electorate.observer.execute("listen outside")
    elector = electorate.add(channels={"outside": Ear()})
    payloads = ["some text", {"order": 7, "lines": [1, 2]}]

    for payload in payloads:
        elector.notify(payload, "outside")

    notifications = electorate.observer.notifies(timeout=PATIENCE, stop_after=2)
    assert [json.loads(notification.payload) for notification in notifications] == payloads


def test_handler_gets_payload_once(electorate: Electorate) -> None:
    """A leader's own notification is handed to its handler, once."""
    ear = Ear()
    leader = electorate.leader(channels={"orders": ear})

    leader.notify("first", "orders")
    leader.notify("last", "orders")

    eventually(lambda: "last" in ear.heard, timeout=PATIENCE)
    assert ear.heard == ["first", "last"]


def test_follower_leads_once_leader_has_stopped(electorate: Electorate) -> None:
    """While one leads the other follows; once it has stopped, the other leads."""
    first = electorate.leader("first")
    second = electorate.successor("second")
    assert (first.is_leader, second.is_leader) == (True, False)

    first.stop()

    assert second.leadership.wait(PATIENCE) is not None
    assert (first.is_leader, second.is_leader) == (False, True)


def test_only_the_leader_handles_notifications(electorate: Electorate) -> None:
    """Notifications are handled by the leader alone, before and after the lead has moved."""
    ears = {"first": Ear(), "second": Ear()}
    first = electorate.leader("first", channels={"orders": ears["first"]})
    second = electorate.successor("second", channels={"orders": ears["second"]})

    second.notify("to the first", "orders")
    eventually(lambda: ears["first"].heard, timeout=PATIENCE)
    first.resign()
    assert second.leadership.wait(PATIENCE) is not None
    electorate.await_hearing({"orders": ears["second"]})
    first.notify("to the second", "orders")
    eventually(lambda: ears["second"].heard, timeout=PATIENCE)

    assert ears["first"].heard == ["to the first"]
    assert ears["second"].heard == ["to the second"]


def test_elector_needs_a_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a database an elector is refused, in words that name the setting."""
    for name in ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE"):
        monkeypatch.delenv(name, raising=False)

    with pytest.raises(ConfigurationError, match="database_url is not set"):
        LeaderElector()


def test_elector_needs_nothing_but_a_database(electorate: Electorate) -> None:
    """Neither lock nor channels nor callback must be given."""
    with LeaderElector(electorate.database) as elector:
        assert elector.leadership.wait(PATIENCE) is not None


def test_callback_hears_of_each_change(electorate: Electorate) -> None:
    """The callback is called with True when the lead was gained, with False when it was lost, and not otherwise."""
    changes: list[bool] = []
    leader = electorate.leader(on_leadership_change=changes.append)
    eventually(lambda: changes == [True], timeout=PATIENCE)

    leader.stop()

    assert changes == [True, False]


def test_failing_handler_is_logged_and_called_again(electorate: Electorate, caplog: pytest.LogCaptureFixture) -> None:
    """An error in a handler is logged with its traceback, and the next notification is handled."""

    def fail_once(payload: Any) -> None:
        if payload == "bad":
            raise LookupError("no such order")

    ear = Ear(fail_once)
    leader = electorate.leader(channels={"orders": ear})

    leader.notify("bad", "orders")
    leader.notify("good", "orders")

    eventually(lambda: ear.heard == ["bad", "good"], timeout=PATIENCE)
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.levelno == logging.ERROR
    assert "orders" in record.getMessage()
    assert "no such order" in str(record.exc_info and record.exc_info[1])
    assert leader.is_leader


def test_several_channels_are_heard(electorate: Electorate) -> None:
    """All channels of an elector are heard, each in order."""
    ears = {"orders": Ear(), "refunds": Ear()}
    leader = electorate.leader(channels=ears)

    leader.notify({"message": "first order"}, "orders")
    leader.notify({"message": "first refund"}, "refunds")
    leader.notify({"message": "second order"}, "orders")

    eventually(lambda: sum(len(ear.heard) for ear in ears.values()) == 3, timeout=PATIENCE)
    assert ears["orders"].heard == [{"message": "first order"}, {"message": "second order"}]
    assert ears["refunds"].heard == [{"message": "first refund"}]


def test_each_channel_has_its_own_handler(electorate: Electorate) -> None:
    """A notification goes to the handler of the very channel it was sent on, names being told apart exactly."""
    ears = {name: Ear() for name in ("orders", "Orders", "orders_2", "order")}
    leader = electorate.leader(channels=ears)

    for name in ears:
        leader.notify(f"for {name}", name)

    eventually(lambda: all(ear.heard for ear in ears.values()), timeout=PATIENCE)
    assert {name: ear.heard for name, ear in ears.items()} == {name: [f"for {name}"] for name in ears}


@pytest.mark.parametrize(
    ("channels", "words"),
    [
        pytest.param({"orders": None}, "orders.*callable", id="no handler"),
        pytest.param({"orders": "not.callable"}, "orders.*callable", id="a name for a handler"),
        pytest.param({"": print}, "non-empty", id="no name"),
        pytest.param({None: print}, "string", id="a name that is no string"),
        pytest.param({"c" * 64: print}, "63 bytes", id="a name too long"),
        pytest.param({"a\0b": print}, "NUL", id="a name with NUL"),
        pytest.param("orders", "channels", id="no mapping but a string"),
        pytest.param(["orders"], "channels", id="no mapping but a list"),
    ],
)
def test_bad_channels_are_refused(channels: Any, words: str) -> None:
    """Channels that cannot work are refused at once, in words that say why."""
    with pytest.raises(ConfigurationError, match=words):
        LeaderElector("host=127.0.0.1", channels=channels)


def test_elector_leads_without_channels(electorate: Electorate) -> None:
    """An elector without channels is elected, and tells so."""
    changes: list[bool] = []
    leader = electorate.leader(on_leadership_change=changes.append)

    eventually(lambda: changes == [True], timeout=PATIENCE)
    assert leader.is_leader
    # One session: without channels there is nothing to listen for.
    assert len(electorate.sessions()) == 1


def test_one_of_two_electors_leads_without_channels(electorate: Electorate) -> None:
    """Of two electors without channels one leads, and the other is not told anything."""
    changes: dict[str, list[bool]] = {"first": [], "second": []}
    first = electorate.leader("first", ttl=2.0, on_leadership_change=changes["first"].append)
    second = electorate.successor("second", ttl=2.0, on_leadership_change=changes["second"].append)
    electorate.await_renewals(4)

    assert (first.is_leader, second.is_leader) == (True, False)
    assert changes == {"first": [True], "second": []}


def test_stranger_can_notify(electorate: Electorate) -> None:
    """A notification that another program sends by `pg_notify` is handled."""
    ear = Ear()
    electorate.leader(channels={"orders": ear})

    electorate.send('{"message": "hello"}', "orders")

    eventually(lambda: ear.heard == [{"message": "hello"}], timeout=PATIENCE)


def test_burst_is_heard_whole(electorate: Electorate) -> None:
    """Of many notifications sent as fast as can be, from several sessions and in one transaction, none is lost."""
    ear = Ear()
    leader = electorate.leader(channels={"orders": ear})

    for number in range(20):
        with psycopg.connect(electorate.database, autocommit=True) as stranger:
            stranger.execute("select pg_notify('orders', %s)", [str(number)])
    electorate.observer.execute("select pg_notify('orders', n::text) from generate_series(20, 4999) n")
    leader.notify(5000, "orders")

    eventually(lambda: 5000 in ear.heard, timeout=PATIENCE)
    assert ear.heard == list(range(5001))


def test_notification_does_not_wait_for_a_poll(electorate: Electorate) -> None:
    """It is handled within milliseconds, however long the poll interval is."""
    arrivals: list[float] = []
    ear = Ear(lambda _: arrivals.append(time.monotonic()))
    leader = electorate.leader(channels={"orders": ear}, poll_interval=3600)

    latencies: list[float] = []
    for number in range(9):
        sent = time.monotonic()
        leader.notify(number, "orders")
        eventually(lambda: len(arrivals) > len(latencies), timeout=PATIENCE)
        latencies.append(arrivals[number] - sent)

    # Others may use the machine, too.
    assert min(latencies) < 0.1


def test_nothing_is_lost_while_the_leader_renews(electorate: Electorate) -> None:
    """Notifications that are sent without a pause while the leader renews many times are all handled, in order."""
    ear = Ear()
    leader = electorate.leader(channels={"orders": ear}, ttl=2.0)
    sent = 0

    def send_some() -> None:
        nonlocal sent
        for _ in range(20):
            electorate.send(str(sent), "orders")
            sent += 1

    # Eleven renewals, a fifth of the ttl apart: the listener has proved its own connection alive twice as well.
    electorate.await_renewals(11, meanwhile=send_some)

    eventually(lambda: len(ear.heard) >= sent, timeout=PATIENCE)
    assert ear.heard == list(range(sent))
    assert leader.is_leader


def test_background_work_of_a_handler_holds_up_nothing(electorate: Electorate) -> None:
    """A handler that leaves its work to a thread gets the next notification at once."""
    finish = threading.Event()
    workers: list[threading.Thread] = []

    def work_in_background(_payload: Any) -> None:
        workers.append(threading.Thread(target=finish.wait))
        workers[-1].start()

    ear = Ear(work_in_background)
    leader = electorate.leader(channels={"orders": ear})
    try:
        for number in range(5):
            leader.notify(number, "orders")
        eventually(lambda: sum(worker.is_alive() for worker in workers) == 5, timeout=PATIENCE)
        assert ear.heard == [0, 1, 2, 3, 4]
    finally:
        finish.set()
        for worker in workers:
            worker.join()


def test_poller_goes_on_by_its_timers(make_poller: Callable[..., Poller]) -> None:
    """A poller whose every cycle sets a timer keeps going, before and after a notification has woken it."""
    poller = make_poller(lambda poller: poller.ask_later(0.02))
    eventually(lambda: len(poller.cycles) >= 4, timeout=PATIENCE)

    assert poller.elector is not None
    poller.elector.notify({}, "jobs")
    eventually(lambda: any("notification" in cycle for cycle in poller.cycles), timeout=PATIENCE)
    before = len(poller.cycles)

    eventually(lambda: len(poller.cycles) >= before + 4, timeout=PATIENCE)
    assert "gained" in poller.cycles[0]


def test_notification_during_a_cycle_brings_another(make_poller: Callable[..., Poller]) -> None:
    """A notification that arrives while a cycle runs is handled during it, and another cycle follows."""
    running, finish = threading.Event(), threading.Event()

    def work(_poller: Poller) -> None:
        running.set()
        finish.wait(PATIENCE)

    poller = make_poller(work)
    assert running.wait(PATIENCE)
    handled = threading.Event()
    poller.on_asked = handled.set
    assert poller.elector is not None
    poller.elector.notify({}, "jobs")
    assert handled.wait(PATIENCE)
    assert len(poller.cycles) == 1

    finish.set()

    eventually(lambda: len(poller.cycles) == 2, timeout=PATIENCE)
    assert poller.cycles[1] == {"notification"}


def test_chain_of_timers_needs_no_notification(make_poller: Callable[..., Poller]) -> None:
    """Work put off three times in a row is done without waiting for the next poll, which would come in an hour."""

    def work(poller: Poller) -> None:
        if len(poller.cycles) <= 3:
            poller.ask_later(0.1)

    poller = make_poller(work)
    eventually(lambda: len(poller.cycles) == 4, timeout=PATIENCE)

    assert poller.cycles == [{"gained"}, {"timer"}, {"timer"}, {"timer"}]


def test_notification_does_not_cost_a_pending_timer(make_poller: Callable[..., Poller]) -> None:
    """A notification that comes while a timer runs brings a cycle of its own, and the timer brings its cycle still."""

    def work(poller: Poller) -> None:
        if len(poller.cycles) == 1:
            poller.ask_later(0.5)

    poller = make_poller(work)
    eventually(lambda: poller.cycles, timeout=PATIENCE)
    assert poller.elector is not None
    poller.elector.notify({}, "jobs")

    eventually(lambda: {"timer"} in poller.cycles, timeout=PATIENCE)
    assert poller.cycles == [{"gained"}, {"notification"}, {"timer"}]


# What is wrong with the seed, and must not be here.


def test_stop_frees_the_lock_before_it_returns(electorate: Electorate) -> None:
    """Once `stop` has returned the lock is free, nobody believes to lead, and nothing is left behind."""
    changes: list[bool] = []
    leader = electorate.leader(channels={"orders": Ear()}, on_leadership_change=changes.append)
    leader.notify("makes use of the connection for sending", "orders")

    leader.stop()

    assert electorate.holders() == []
    assert not leader.is_leader
    assert leader.leadership.term is None
    assert changes == [True, False]
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("pgleader")] == []
    eventually(lambda: electorate.sessions() == [], timeout=PATIENCE)


def test_stop_hands_over_at_once(electorate: Electorate) -> None:
    """A successor leads well before its next poll once the leader has stopped."""
    leader = electorate.leader("first", poll_interval=3600)
    took: list[float] = []
    for node in ("second", "third", "fourth"):
        successor = electorate.successor(node, poll_interval=3600)

        leader.stop()
        stopped = time.monotonic()

        assert successor.leadership.wait(PATIENCE) is not None
        took.append(time.monotonic() - stopped)
        leader = successor

    # Others may use the machine, too.
    assert min(took) < 1


def test_ended_session_is_told_and_the_lead_won_again(electorate: Electorate) -> None:
    """When the server ends the leader's session the callback is told, and the same node can lead a later term."""
    changes: list[bool] = []
    leader = electorate.leader(on_leadership_change=changes.append)
    first_term = leader.leadership.term

    electorate.terminate("pgleader leader first")

    eventually(lambda: changes == [True, False, True], timeout=PATIENCE)
    second_term = leader.leadership.wait(PATIENCE)
    assert first_term is not None
    assert second_term is not None
    assert second_term.number > first_term.number
    assert electorate.holders() == ["pgleader leader first"]


def test_ended_session_is_noticed_when_it_ends(electorate: Electorate) -> None:
    """A leader whose session the server ends steps down when that happens, not at its next renewal.

    The next one leads within milliseconds. Both learn of it by a message from the server, so how the two messages
    race is not in our hands; that the old leader does not wait for its next renewal, a second later, is.
    """
    electors = {name: electorate.add(name, ttl=5.0) for name in ("first", "second")}
    times: dict[tuple[str, bool], float] = {}

    def note(name: str, change: Change) -> None:
        times[name, change.gained] = time.monotonic()

    for name, elector in electors.items():
        # Called by the elector itself, before anybody else hears of it.
        elector.leadership.subscribe(partial(note, name))
    electors["first"].start()
    assert electors["first"].leadership.wait(PATIENCE) is not None
    electors["second"].start()

    overlaps: list[float] = []
    for number in range(6):
        old, new = ("first", "second") if number % 2 == 0 else ("second", "first")
        eventually(lambda: len(electorate.waiting()) == 1, timeout=PATIENCE)
        times.clear()
        electorate.terminate(f"pgleader leader {old}")
        eventually(lambda: len(times) == 2, timeout=PATIENCE)
        overlaps.append(times[old, False] - times[new, True])
    # Others may use the machine, too.
    assert statistics.median_low(overlaps) < 0.05


def test_follower_outlives_its_session(electorate: Electorate) -> None:
    """A follower whose session the server ends stands again, and can lead."""
    first = electorate.leader("first")
    second = electorate.successor("second")

    electorate.terminate("pgleader follower second")
    eventually(lambda: not electorate.waiting(), timeout=PATIENCE)
    eventually(electorate.waiting, timeout=PATIENCE)
    first.stop()

    assert second.leadership.wait(PATIENCE) is not None


def test_incident_12_payload_is_delivered_verbatim(electorate: Electorate) -> None:
    """Quotes, SQL, escapes, control characters and all of Unicode arrive as they were sent, and run nothing."""
    ear = Ear()
    leader = electorate.leader(channels={"orders": ear})

    for payload in HOSTILE_PAYLOADS:
        leader.notify(payload, "orders")

    eventually(lambda: len(ear.heard) >= len(HOSTILE_PAYLOADS), timeout=PATIENCE)
    assert ear.heard == HOSTILE_PAYLOADS
    assert electorate.observer.execute("select to_regclass('injected')").fetchone() == (None,)


def test_empty_payload_is_delivered(electorate: Electorate) -> None:
    """A JSON value that Python takes for false is a payload as any other, and more are delivered after it."""
    ear = Ear()
    leader = electorate.leader(channels={"orders": ear})
    payloads: list[Any] = [None, False, 0, "", [], {}, "after"]

    for payload in payloads:
        leader.notify(payload, "orders")

    eventually(lambda: "after" in ear.heard, timeout=PATIENCE)
    assert json.dumps(ear.heard) == json.dumps(payloads)


def test_incident_12_channel_name_is_taken_verbatim(electorate: Electorate) -> None:
    """Any name that Postgres takes for a channel works as it is, for sending and for listening."""
    ears = {channel: Ear() for channel in HOSTILE_CHANNELS}
    leader = electorate.leader(channels=ears)

    for channel in HOSTILE_CHANNELS:
        leader.notify(["by the elector", channel], channel)
        electorate.send(json.dumps(["by a stranger", channel]), channel)

    eventually(lambda: all(len(ear.heard) >= 2 for ear in ears.values()), timeout=PATIENCE)
    for channel, ear in ears.items():
        assert sorted(ear.heard) == [["by a stranger", channel], ["by the elector", channel]]


def test_payload_too_large_is_refused_and_nothing_else(
    electorate: Electorate, caplog: pytest.LogCaptureFixture
) -> None:
    """The largest payload that Postgres takes is delivered; one byte more is refused, and that is all."""
    ear, changes = Ear(), list[bool]()
    leader = electorate.leader(channels={"orders": ear}, on_leadership_change=changes.append)
    term = leader.leadership.term
    caplog.clear()

    sent = []
    for letter in ("x", "é", "😀"):
        # Two quotes and an odd number of bytes between them: filled up with a letter of one byte.
        count, rest = divmod(MOST_BYTES - 2, len(letter.encode()))
        sent.append(letter * count + "x" * rest)
        with pytest.raises(NotificationError, match=f"{MOST_BYTES + 1} bytes.*{MOST_BYTES}"):
            leader.notify(sent[-1] + "x", "orders")
        leader.notify(sent[-1], "orders")

    eventually(lambda: ear.heard == sent, timeout=PATIENCE)
    assert leader.leadership.term == term
    assert changes == [True]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_payload_that_is_no_json_is_refused(electorate: Electorate) -> None:
    """What JSON has no form for is refused, and nothing is sent."""
    ear = Ear()
    leader = electorate.leader(channels={"orders": ear})

    for payload in (object(), {"at": {1, 2}}, b"bytes", float("nan"), [float("inf")], "half a character: \ud800"):
        with pytest.raises(NotificationError):
            leader.notify(payload, "orders")
    leader.notify("after", "orders")

    eventually(lambda: "after" in ear.heard, timeout=PATIENCE)
    assert ear.heard == ["after"]


@pytest.mark.parametrize("channel", ["", None, "c" * 64, "a\0b"])
def test_bad_channel_is_refused_by_notify(channel: Any) -> None:
    """A channel that Postgres would not take, or would cut short, is refused."""
    with pytest.raises(ConfigurationError, match="channel"):
        LeaderElector("host=127.0.0.1").notify({}, channel)


def test_undecodable_payload_is_logged_and_dropped(electorate: Electorate, caplog: pytest.LogCaptureFixture) -> None:
    """A payload that is not JSON is dropped with one line that names the channel, and the next one is handled."""
    ear = Ear()
    leader = electorate.leader(channels={"orders": ear})
    caplog.clear()

    texts = ["", "not JSON", '{"cut": ', "NaN{", "\ufeff1", "[" * 5000]
    for number, text in enumerate(texts):
        electorate.send(text, "orders")
        electorate.send(str(number), "orders")

    eventually(lambda: ear.heard == list(range(len(texts))), timeout=PATIENCE)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == len(texts)
    assert all("dropped a notification on channel orders" in warning for warning in warnings)
    assert leader.is_leader


def test_slow_handler_holds_up_only_its_own_channel(electorate: Electorate) -> None:
    """While the handler of one channel hangs, others are called, the leader leads on, and what waited is not lost."""
    go_on = threading.Event()
    ears = {"slow": Ear(lambda _: go_on.wait(PATIENCE)), "quick": Ear()}
    leader = electorate.leader(channels=ears, ttl=2.0)
    term = leader.leadership.term
    try:
        for number in range(3):
            leader.notify(number, "slow")
            leader.notify(number, "quick")
        eventually(lambda: ears["quick"].heard == [0, 1, 2], timeout=PATIENCE)
        # In a thread of its own, which may get its turn later.
        eventually(lambda: ears["slow"].heard, timeout=PATIENCE)
        # For longer than the ttl.
        electorate.await_renewals(7)
        assert ears["slow"].heard == [0]
        assert leader.leadership.term == term
    finally:
        go_on.set()
    eventually(lambda: ears["slow"].heard == [0, 1, 2], timeout=PATIENCE)


def test_handler_that_fails_always_disturbs_no_other(electorate: Electorate) -> None:
    """A handler that raises each time costs no other channel a notification, and not the lead."""

    def fail(_payload: Any) -> None:
        raise RuntimeError("always")

    ears = {"bad": Ear(fail), "good": Ear()}
    leader = electorate.leader(channels=ears)
    term = leader.leadership.term

    for number in range(50):
        leader.notify(number, "bad")
        leader.notify(number, "good")

    eventually(lambda: ears["good"].heard == ears["bad"].heard == list(range(50)), timeout=PATIENCE)
    assert leader.leadership.term == term


def test_failing_callback_disturbs_nothing(electorate: Electorate, caplog: pytest.LogCaptureFixture) -> None:
    """An error in the leadership callback is logged; the node leads, and the callback is told of the loss too."""
    changes: list[bool] = []

    def fail(leads: bool) -> None:  # noqa: FBT001 - how it is called back
        changes.append(leads)
        raise RuntimeError("no, thanks")

    leader = electorate.leader(on_leadership_change=fail)
    eventually(lambda: changes == [True], timeout=PATIENCE)
    assert leader.is_leader

    leader.stop()

    assert changes == [True, False]
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["no, thanks"] * 2


def test_hanging_callback_does_not_cost_the_lead(electorate: Electorate) -> None:
    """While the leadership callback hangs, the leader renews for longer than the ttl."""
    go_on = threading.Event()
    leader = electorate.leader(on_leadership_change=lambda _: go_on.wait(PATIENCE), ttl=2.0)
    term = leader.leadership.term
    try:
        electorate.await_renewals(7)
        assert leader.leadership.term == term
    finally:
        go_on.set()


def test_renewal_does_not_take_the_lock_again(electorate: Electorate) -> None:
    """A leader looks whether it holds the lock; it does not pile up locks that it would have to let go one by one."""
    leader = electorate.leader(ttl=1.0)

    queries = electorate.await_renewals(4)

    assert [query for query in queries if "pg_advisory_lock" in query or "pg_try_advisory_lock" in query] == []
    leader.resign()
    eventually(lambda: electorate.holders() == [], timeout=PATIENCE)


def test_lead_won_again_hears_each_notification_once(electorate: Electorate) -> None:
    """After the lead was lost and won again there is one listener still, not two."""
    ear, changes = Ear(), list[bool]()
    leader = electorate.leader(channels={"orders": ear}, on_leadership_change=changes.append)
    electorate.terminate("pgleader leader first")
    eventually(lambda: changes == [True, False, True], timeout=PATIENCE)
    electorate.await_hearing({"orders": ear})

    for number in range(10):
        leader.notify(number, "orders")

    eventually(lambda: 9 in ear.heard, timeout=PATIENCE)
    assert ear.heard == list(range(10))
    assert electorate.sessions().count("pgleader listener first") == 1


def test_leader_whose_listening_session_is_ended_hears_again(electorate: Electorate) -> None:
    """A leader does not stay deaf: when the server ends its listening session it opens another, in the same term."""
    ear = Ear()
    leader = electorate.leader(channels={"orders": ear})
    term = leader.leadership.term

    electorate.terminate("pgleader listener first")
    electorate.await_hearing({"orders": ear})
    leader.notify("heard", "orders")

    eventually(lambda: ear.heard == ["heard"], timeout=PATIENCE)
    assert leader.leadership.term == term


def test_sending_outlives_its_session(electorate: Electorate) -> None:
    """`notify` works again when the server has ended the session by which it sends."""
    electorate.observer.execute("listen orders")
    elector = electorate.add()
    elector.notify("before", "orders")
    electorate.terminate("pgleader notifier first")
    eventually(lambda: electorate.sessions() == [], timeout=PATIENCE)

    elector.notify("after", "orders")

    payloads = [heard.payload for heard in electorate.observer.notifies(timeout=PATIENCE, stop_after=2)]
    assert payloads == ['"before"', '"after"']


def test_notify_may_be_called_by_many_threads(electorate: Electorate) -> None:
    """`notify` may be called by many threads at once, and before and after leading."""
    ear = Ear()
    leader = electorate.leader(channels={"orders": ear})

    def send_fifty(first: int) -> None:
        for number in range(first, first + 50):
            leader.notify(number, "orders")

    senders = [threading.Thread(target=send_fifty, args=[first]) for first in range(0, 400, 50)]

    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()

    eventually(lambda: len(ear.heard) >= 400, timeout=PATIENCE)
    assert sorted(ear.heard) == list(range(400))


def test_lock_is_shared_with_others_who_take_it(electorate: Electorate) -> None:
    """An explicit lock is the one that `pg_try_advisory_lock(bigint)` takes, for every number that fits."""
    take, release = "select pg_try_advisory_lock(%s::bigint)", "select pg_advisory_unlock(%s::bigint)"
    electors = {}
    for lock in (0, 1, 4242, -1, 2**31, 2**32 + 7, 2**63 - 1, -(2**63)):
        assert electorate.observer.execute(take, [lock]).fetchone() == (True,)
        electors[lock] = electorate.add(lock=lock)
        electors[lock].start()
    for lock in electors:
        eventually(partial(is_behind, electorate, lock), timeout=PATIENCE)
    assert not any(elector.is_leader for elector in electors.values())

    for lock, elector in electors.items():
        assert electorate.observer.execute(release, [lock]).fetchone() == (True,)
        assert elector.leadership.wait(PATIENCE) is not None
        assert electorate.observer.execute(take, [lock]).fetchone() == (False,)


def is_behind(electorate: Electorate, lock: int) -> bool:
    """Tell whether an elector waits for a lock."""
    return electorate.waiting(lock) == ["pgleader follower first"]


def test_elections_are_independent(electorate: Electorate) -> None:
    """Electors of different elections, or of a lock and an election, all lead; those of one election compete."""
    leaders = [
        electorate.leader("a", lock=None, election="shop"),
        electorate.leader("b", lock=None, election="warehouse"),
        electorate.leader("c", lock=4242, election="shop"),
    ]
    rivals = [
        electorate.add("d", lock=None, election="shop"),
        electorate.add("e", lock=4242, election="another name for the same lock"),
    ]
    for rival in rivals:
        rival.start()
    eventually(lambda: len([name for name in electorate.sessions() if "follower" in name]) == 2, timeout=PATIENCE)
    electorate.await_renewals(4)

    assert [elector.is_leader for elector in (*leaders, *rivals)] == [True, True, True, False, False]


def test_start_does_not_wait_for_a_database_that_is_away() -> None:
    """Without a server `start` and `stop` return at once, and nobody leads."""
    # Nothing listens on port 1.
    elector = LeaderElector("postgresql://nobody@127.0.0.1:1/nowhere", channels={"orders": Ear()})

    def starts_and_stops_at_once() -> bool:
        began = time.monotonic()
        elector.start()
        assert not elector.is_leader
        assert elector.leadership.wait(0.2) is None
        elector.stop()
        # Others may use the machine, too.
        return time.monotonic() - began < 2

    eventually(starts_and_stops_at_once, timeout=PATIENCE)


def test_restarted_elector_connects_again() -> None:
    """An elector that was stopped while it tried to connect, and started again, tries again."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        deaf.settimeout(PATIENCE)
        port = deaf.getsockname()[1]
        elector = LeaderElector(f"postgresql://nobody@127.0.0.1:{port}/nowhere?sslmode=disable&gssencmode=disable")
        elector.start()
        first_attempt, _ = deaf.accept()
        elector.stop()
        elector.start()
        first_attempt.close()
        try:
            second_attempt, (host, _) = deaf.accept()
            assert host == "127.0.0.1"
            second_attempt.close()
        finally:
            elector.stop()


def test_stop_may_be_called_at_any_time(electorate: Electorate) -> None:
    """Stopping before the start, or twice, does nothing; after it the elector can be started again."""
    changes: list[bool] = []
    ear = Ear()
    elector = electorate.add(channels={"orders": ear}, on_leadership_change=changes.append)
    elector.stop()

    terms: list[Term | None] = []
    for _ in range(2):
        elector.start()
        elector.start()
        terms.append(elector.leadership.wait(PATIENCE))
        electorate.await_hearing({"orders": ear})
        elector.stop()
        elector.stop()

    first, second = terms
    assert first is not None
    assert second is not None
    assert second.number > first.number
    assert changes == [True, False, True, False]


def test_stop_may_be_called_by_a_handler_and_by_the_callback(electorate: Electorate) -> None:
    """A handler, or the callback, may stop its own elector; the lock is free then."""
    stopped = threading.Event()

    def stop(elector: LeaderElector) -> None:
        elector.stop()
        stopped.set()

    by_handler: LeaderElector = electorate.leader("first", channels={"orders": Ear(lambda _: stop(by_handler))})
    by_handler.notify("the end", "orders")
    assert stopped.wait(PATIENCE)
    assert electorate.holders() == []

    stopped.clear()
    by_callback: LeaderElector = electorate.add(
        "second", on_leadership_change=lambda leads: stop(by_callback) if leads else None
    )
    by_callback.start()
    assert stopped.wait(PATIENCE)
    assert electorate.holders() == []


def test_resigned_leader_stands_again(electorate: Electorate) -> None:
    """Who resigns lets the next one lead, stands in line behind it, and leads again when that one is gone."""
    changes: list[bool] = []
    first = electorate.leader("first", on_leadership_change=changes.append)
    second = electorate.successor("second")

    first.resign()
    assert second.leadership.wait(PATIENCE) is not None
    assert not first.is_leader
    eventually(lambda: electorate.waiting() == ["pgleader follower first"], timeout=PATIENCE)
    second.stop()

    assert first.leadership.wait(PATIENCE) is not None
    eventually(lambda: changes == [True, False, True], timeout=PATIENCE)


def test_with_block_starts_and_stops(electorate: Electorate) -> None:
    """In a `with` block the elector stands; when that ends, by an error too, the lock is free."""
    elector = electorate.add()

    def lead_and_fail() -> None:
        with elector as started:
            assert started.leadership.wait(PATIENCE) is not None
            raise KeyError("an error")

    with pytest.raises(KeyError, match="an error"):
        lead_and_fail()

    assert not elector.is_leader
    assert electorate.holders() == []


def test_log_goes_to_the_logger_given(electorate: Electorate, caplog: pytest.LogCaptureFixture) -> None:
    """Everything is logged where the caller wants it, gain and loss with election and term among it."""
    mine = logging.getLogger("tests.mine")
    caplog.set_level(logging.INFO)

    leader = electorate.leader(logger=mine, election="shop")
    term = leader.leadership.term
    leader.stop()

    assert term is not None
    ours = [record for record in caplog.records if record.getMessage().startswith("pgleader: ")]
    assert {record.name for record in ours} == {"tests.mine"}
    words = [record.getMessage() for record in ours]
    assert f"pgleader: gained leadership (election shop, term {term.number})" in words[0]
    assert f"pgleader: lost leadership (election shop, term {term.number}): stopped" in words[-1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lock": 2**63}, "lock.*bigint"),
        ({"lock": -(2**63) - 1}, "lock.*bigint"),
        ({"lock": "x"}, "lock.*bigint"),
        ({"lock": 4.2}, "lock.*bigint"),
        ({"lock": True}, "lock.*bigint"),
        ({"ttl": 0}, "ttl"),
        ({"ttl": float("nan")}, "ttl"),
        ({"ttl": "soon"}, "ttl"),
        ({"poll_interval": 0}, "poll_interval"),
        ({"poll_interval": -1}, "poll_interval"),
        ({"election": ""}, "election"),
        ({"election": 7}, "election"),
        ({"on_leadership_change": "not callable"}, "on_leadership_change"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], words: str) -> None:
    """An argument that cannot work is refused at once, in words that name it."""
    with pytest.raises(ConfigurationError, match=words):
        LeaderElector("host=127.0.0.1", **options)


def test_bad_url_is_refused_without_showing_it() -> None:
    """A URL that libpq does not understand is refused, and its password is in no message."""
    url = "postgresql://user:hunter2@[bad/host"
    with pytest.raises(ConfigurationError, match="database_url") as caught:
        LeaderElector(url)

    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
