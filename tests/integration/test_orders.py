"""What operators order, and which nodes there are, through real sessions with a real Postgres."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import psycopg
import pytest

from celery_pgleader.config import Config
from celery_pgleader.election import Elector, Leadership, LockSession, TermRunner
from celery_pgleader.election.state import Phase
from celery_pgleader.store import LEDGER_TERMS
from celery_pgleader.store.orders import Orders
from celery_pgleader.store.presence import Abilities, NodePresence
from celery_pgleader.threads import Ending
from celery_pgleader.worker import steward
from celery_pgleader.worker.steward import Steward
from tests.support.eventually import eventually

PATIENCE = 60.0
ORDER = "update pgleader.elections set {} where election = 'shop'"


class Member:
    """An elector, and a steward while it leads."""

    def __init__(self, config: Config, node: str, abilities: Abilities) -> None:
        """Begin to stand."""
        self.node = node
        self.presence = NodePresence(config, node, abilities)
        self.elector = Elector(
            config,
            node,
            leadership=Leadership(),
            open_session=partial(LockSession.open, terms=LEDGER_TERMS, presence=self.presence),
        )
        self.looks: list[str] = []
        self.busy = False
        self.steward = Steward(
            config,
            self.elector.leadership,
            self.presence,
            partial(self.elector.resign, None),
            lambda: self.looks.append(node),
            lambda: self.busy,
        )
        self.runner = TermRunner(self.elector.leadership, "steward", self.steward.run)
        self.runner.start()
        self.elector.start()

    @property
    def leads(self) -> bool:
        """Whether it leads."""
        return self.elector.leadership.trusted()

    def in_phase(self, phase: Phase) -> bool:
        """Tell whether it does a certain thing."""
        return self.elector.phase is phase

    def end(self) -> None:
        """Leave."""
        self.elector.stop(PATIENCE)
        self.runner.stop(PATIENCE)


class Shop:
    """An election of members in this process."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        """Begin without members."""
        self.url = url
        self.members: list[Member] = []
        self.root = stack.enter_context(psycopg.connect(url, autocommit=True))
        self._stack = stack

    def add(self, node: str, abilities: Abilities | None = None, **settings: Any) -> Member:
        """Add a member."""
        given = {"election": "shop", "renew_interval": 0.3, "poll_interval": 0.3, **settings}
        member = Member(Config(database_url=self.url, **given), node, abilities or Abilities())
        self._stack.callback(member.end)
        self.members.append(member)
        return member

    def order(self, what: str) -> None:
        """Change the election's row, and wake the leader."""
        self.root.execute(ORDER.format(what).encode())
        self.root.execute("notify pgleader_orders")

    def await_leader(self, member: Member) -> None:
        """Wait until a member leads."""
        eventually(lambda: member.leads, PATIENCE)

    def terms(self) -> list[tuple[str, str | None]]:
        """Return who led, in order, and how it ended."""
        return self.root.execute("select node, reason from pgleader.terms order by term").fetchall()


@pytest.fixture(autouse=True)
def short_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a leader look more often, and a better one wait less, than in a worker."""
    monkeypatch.setattr(steward, "LOOK_EVERY", 0.3)
    monkeypatch.setattr(steward, "LEAST_TERM", 1.0)


@pytest.fixture
def shop(database: str) -> Iterator[Shop]:
    """Give an election."""
    with ExitStack() as stack:
        yield Shop(database, stack)


def in_line(member: Member) -> Callable[[], bool]:
    """Return whether a member waits for the lock."""
    return lambda: member.in_phase(Phase.SUCCESSOR)


def test_leader_hands_over_to_the_named_node(shop: Shop) -> None:
    """Whoever is granted the lock before it hands it on, and only the one that was asked for leads."""
    first = shop.add("a")
    shop.await_leader(first)
    others = [shop.add(node) for node in "bc"]
    for other in others:
        eventually(in_line(other), PATIENCE)
    leader = first
    for number in range(6):
        wanted = next(member for member in shop.members if member is not leader and number % 2 == (member.node == "b"))
        eventually(in_line(wanted), PATIENCE)
        shop.order(f"resign_at = clock_timestamp(), resign_to = '{wanted.node}', resign_term = term")
        shop.await_leader(wanted)
        leader = wanted
    terms = shop.terms()
    assert len(terms) == 7
    for (_, reason), (node, _) in itertools.pairwise(terms):
        assert reason == f"handed over to {node}"


def test_named_follower_gets_a_place(shop: Shop) -> None:
    """The lead goes to it all the same, and the leader leads until it is in line."""
    first = shop.add("a")
    shop.await_leader(first)
    for node in "bc":
        eventually(in_line(shop.add(node)), PATIENCE)
    last = shop.add("d")
    eventually(lambda: last.in_phase(Phase.FOLLOWER), PATIENCE)
    shop.order("resign_at = clock_timestamp(), resign_to = 'd', resign_term = term")
    shop.await_leader(last)
    assert shop.terms() == [("a", "handed over to d"), ("d", None)]


def test_leader_does_not_hand_over_to_an_absent_node(shop: Shop) -> None:
    """The leader stays, and the order is dropped."""
    first = shop.add("a")
    shop.await_leader(first)
    shop.order("resign_at = clock_timestamp(), resign_to = 'nobody', resign_term = term")
    row = "select resign_at is null from pgleader.elections"
    eventually(lambda: shop.root.execute(row).fetchone() == (True,), PATIENCE)
    assert first.leads
    assert shop.terms() == [("a", None)]


def test_others_are_elected_if_the_named_node_is_gone(shop: Shop) -> None:
    """A preference lasts for a moment: nobody waits for ever for a node that is gone."""
    shop.add("a")
    shop.await_leader(shop.members[0])
    shop.root.execute(ORDER.format("next_node = 'gone', next_until = clock_timestamp() + interval '1 s'").encode())
    other = shop.add("b")
    eventually(in_line(other), PATIENCE)
    shop.members[0].elector.resign(PATIENCE)
    shop.await_leader(other)
    (waited,) = shop.root.execute(
        "select extract(epoch from n.gained_at - o.ended_at)::float"
        "  from pgleader.terms o join pgleader.terms n on n.term = o.term + 1"
    ).fetchone() or (0,)
    assert 0 < waited < 1 + PATIENCE


def test_order_for_a_past_term_is_not_obeyed(shop: Shop) -> None:
    """Whoever leads next was not meant."""
    first = shop.add("a")
    shop.await_leader(first)
    shop.root.execute(ORDER.format("resign_at = clock_timestamp(), resign_term = term - 1").encode())
    # One wake-up may come before the leader listens.
    eventually(lambda: shop.root.execute("notify pgleader_orders") and first.looks, PATIENCE)
    assert first.leads


def test_planned_switchover_outlives_a_leader(shop: Shop) -> None:
    """Whoever leads by then hands over, and does so once."""
    first = shop.add("a")
    shop.await_leader(first)
    second = shop.add("b")
    eventually(in_line(second), PATIENCE)
    shop.order("resign_at = clock_timestamp() + interval '1.5 s'")
    first.elector.resign(0.5)
    shop.await_leader(second)
    shop.await_leader(first)
    assert shop.terms() == [("a", "resigned"), ("b", "resigned"), ("a", None)]
    assert shop.root.execute("select resign_at from pgleader.elections").fetchone() == (None,)


def test_cordoned_leader_hands_over_and_does_not_return(shop: Shop) -> None:
    """Until it is uncordoned."""
    first = shop.add("a")
    shop.await_leader(first)
    second = shop.add("b")
    eventually(in_line(second), PATIENCE)
    shop.order("cordoned = '{a}'")
    shop.await_leader(second)
    second.elector.resign(0.5)
    eventually(lambda: len(shop.terms()) == 3, PATIENCE)
    shop.order("cordoned = '{}'")
    eventually(in_line(first), PATIENCE)
    second.elector.resign(PATIENCE)
    shop.await_leader(first)
    assert [node for node, _ in shop.terms()] == ["a", "b", "b", "a"]


def test_no_node_is_elected_while_the_election_is_held(shop: Shop) -> None:
    """The leader leads on; if it goes, nobody does, until the election goes on."""
    first = shop.add("a")
    shop.await_leader(first)
    second = shop.add("b")
    eventually(in_line(second), PATIENCE)
    shop.order("held_at = clock_timestamp()")
    assert first.leads
    first.elector.resign(0.1)
    eventually(lambda: not second.in_phase(Phase.SUCCESSOR), PATIENCE)
    eventually(lambda: first.in_phase(Phase.FOLLOWER) and second.in_phase(Phase.FOLLOWER), PATIENCE)
    assert len(shop.terms()) == 1
    shop.order("held_at = null")
    eventually(lambda: any(member.leads for member in shop.members), PATIENCE)


def test_higher_priority_takes_over_once_and_stays(shop: Shop) -> None:
    """After the least term of the one that leads, and not while that is busy."""
    low = shop.add("low")
    shop.await_leader(low)
    # What is planned for later does not matter.
    shop.order("resign_at = clock_timestamp() + interval '1 day'")
    low.busy = True
    high = shop.add("high", priority=5)
    eventually(in_line(high), PATIENCE)
    assert low.leads
    low.busy = False
    shop.await_leader(high)
    assert shop.terms() == [("low", "handed over to high"), ("high", None)]


def test_node_with_priority_0_never_leads(shop: Shop) -> None:
    """Though nobody else is there."""
    never = shop.add("never", priority=0)
    eventually(lambda: never.in_phase(Phase.FOLLOWER), PATIENCE)
    assert shop.root.execute("select stands_back from pgleader.nodes").fetchone() == ("its priority is 0",)
    other = shop.add("other")
    shop.await_leader(other)
    other.elector.resign(0.5)
    eventually(lambda: len(shop.terms()) == 2, PATIENCE)
    assert {node for node, _ in shop.terms()} == {"other"}


def test_incident_13_node_that_lacks_entries_does_not_lead_beside_one_that_has_them(shop: Shop) -> None:
    """Whoever runs an older version of the app hands over to a newer one, and is not elected beside it."""
    old = shop.add("old", Abilities(("a",), "1"))
    shop.await_leader(old)
    new = shop.add("new", Abilities(("a", "b"), "2"))
    shop.await_leader(new)
    eventually(lambda: old.in_phase(Phase.FOLLOWER), PATIENCE)
    equal = shop.add("equal", Abilities(("a", "b"), "2"))
    eventually(in_line(equal), PATIENCE)
    new.end()
    shop.await_leader(equal)
    equal.end()
    shop.await_leader(old)
    assert [node for node, _ in shop.terms()] == ["old", "new", "equal", "old"]


def test_incident_13_node_whose_app_lacks_a_task_does_not_lead(shop: Shop) -> None:
    """It says so to whoever looks."""
    unfit = shop.add("unfit", Abilities(("a",), "1", "its app has no task shop.a of a"))
    eventually(lambda: unfit.in_phase(Phase.FOLLOWER), PATIENCE)
    row = shop.root.execute("select node, stands_back from pgleader.nodes").fetchone()
    assert row == ("unfit", "its app has no task shop.a of a")


def test_node_on_hold_stands_back_until_it_campaigns(shop: Shop) -> None:
    """It may lead, be a successor or a follower when it is told."""
    first, second = shop.add("a"), shop.add("b")
    eventually(lambda: first.leads or second.leads, PATIENCE)
    leader, other = (first, second) if first.leads else (second, first)
    eventually(in_line(other), PATIENCE)
    other.presence.hold(on=True)
    leader.elector.resign(0.5)
    eventually(lambda: len(shop.terms()) == 2, PATIENCE)
    assert not other.in_phase(Phase.SUCCESSOR)
    other.presence.hold(on=False)
    other.elector.campaign()
    eventually(in_line(other), PATIENCE)
    assert {node for node, _ in shop.terms()} == {leader.node}


def test_rows_of_absent_nodes_are_dropped(shop: Shop) -> None:
    """And those of nodes that are there are not, however old."""
    member = shop.add("a")
    shop.await_leader(member)
    shop.root.execute("update pgleader.nodes set seen_at = seen_at - interval '2 days'")
    shop.root.execute(
        "insert into pgleader.nodes select 'shop', 'gone', gen_random_uuid(), 0, 1, null, null, null, '', '', 0,"
        " now(), now() - interval '2 days'"
    )
    term = member.elector.leadership.term
    assert term is not None
    config = Config(database_url=shop.url, election="shop")
    orders = Orders(config, term, member.presence.parameters())
    orders.forget_nodes()
    assert shop.root.execute("select node from pgleader.nodes").fetchall() == [("a",)]
    orders.close()


def test_steward_ends_with_the_term(shop: Shop) -> None:
    """And opens no session for a term that is over."""
    member = shop.add("a")
    shop.await_leader(member)
    term = member.elector.leadership.term
    assert term is not None
    member.elector.resign(PATIENCE)
    eventually(lambda: not member.leads, PATIENCE)
    shop.root.execute("update pgleader.elections set term = term + 1")
    member.steward.run(term, Ending())


def test_waiting_steward_ends_with_the_term(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not look up by itself."""
    monkeypatch.setattr(steward, "LOOK_EVERY", 3_600.0)
    member = shop.add("a")
    shop.await_leader(member)
    term = member.elector.leadership.term
    assert term is not None
    ended = Ending()
    thread = threading.Thread(target=member.steward.run, args=[term, ended], daemon=True)
    thread.start()
    stewards = (
        "select count(*) from pg_stat_activity where application_name like 'pgleader steward%' and state = 'idle'"
    )
    eventually(lambda: shop.root.execute(stewards).fetchall() == [(2,)], PATIENCE)
    ended.set()
    thread.join(PATIENCE)
    assert not thread.is_alive()
