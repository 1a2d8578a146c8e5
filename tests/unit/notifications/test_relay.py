"""The relay's decisions, over a mailbox and a courier in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any, cast
from uuid import UUID, uuid5

import pytest
from celery import Celery

from celery_pgleader import Leadership, Term
from celery_pgleader.channels import Route
from celery_pgleader.notifications.courier import BrokerAway, Cut, NotTaken, Refused
from celery_pgleader.notifications.relay import FIRST_REST, MOST_ATTEMPTS, POLL, REFUSED_REST, Round
from celery_pgleader.store import Letter
from celery_pgleader.threads import Doorbell

TERM = Term(7, "shop", "a", 11)
UID = UUID(int=1)
A_WHILE = 0.1


class MemoryMailbox:
    """Letters in a list."""

    def __init__(self, *letters: Letter) -> None:
        """Begin with some."""
        self.letters = list(letters)
        self.dead: list[tuple[int, str]] = []
        # For a relay that lies down: whether nobody is on the way, and what happens in each wait.
        self.is_quiet = True
        self.nights: list[Callable[[], bool]] = []
        self.diary: list[str] = []

    def waiting(
        self, *, after: int = 0, alone: bool = False, resting: Collection[Letter] = (), limit: int = 3
    ) -> tuple[list[Letter], bool]:
        keys = {(rest.channel, rest.key) for rest in resting if rest.key is not None}
        found = [
            letter
            for letter in self.letters
            if letter.id > after and letter not in resting and (letter.channel, letter.key) not in keys
        ]
        if alone:
            found = [
                letter
                for letter in found
                if letter.key is None or not any(o.id < letter.id and o.key == letter.key for o in self.letters)
            ]
        return found[:limit], len(found) >= limit

    def is_any_waiting(self, *, resting: Collection[Letter] = ()) -> bool:
        assert not resting, "no test has both"
        return bool(self.letters)

    def lie_down(self, *, lightly: bool) -> bool:
        self.diary.append("sleep" if self.is_quiet else "light sleep" if lightly else "up")
        return self.is_quiet

    def get_up(self) -> None:
        self.diary.append("got up")

    def wait(self, seconds: float, _bell: Doorbell) -> bool:
        self.diary.append(f"{seconds:.2f} s")
        return self.nights.pop(0)()

    def newest(self) -> int:
        return max((letter.id for letter in self.letters), default=0)

    def dispatched(self, letters: Iterable[Letter]) -> None:
        gone = {letter.id for letter in letters}
        self.letters = [letter for letter in self.letters if letter.id not in gone]

    def tried(self, letter: Letter, error: str) -> None:
        index = self.letters.index(letter)
        self.letters[index] = make(letter.id, letter.key, attempts=letter.attempts + 1)

    def bury(self, letter: Letter, error: str) -> None:
        self.dispatched([letter])
        self.dead.append((letter.id, error))


class MemoryCourier:
    """A broker that does not take some messages, or none."""

    def __init__(self) -> None:
        """Begin with one that takes all."""
        self.may_take_some = False
        self.batches: list[list[int]] = []
        self.taken: list[int] = []
        self.bad: dict[int, NotTaken] = {}
        self.is_there = True
        self.loaded: list[int] = []

    @contextmanager
    def batch(self) -> Iterator[Any]:
        self.loaded = []
        yield self
        if not self.is_there:
            raise BrokerAway("away")
        for number in self.loaded:
            if number in self.bad:
                raise self.bad[number]
        self.taken += self.loaded
        self.batches.append(self.loaded)

    def reachable(self) -> bool:
        return self.is_there

    def is_of_connection(self, error: BaseException) -> bool:
        return isinstance(error, NotTaken)


class Desk:
    """A round of the relay, with everything around it in memory."""

    def __init__(self, *letters: Letter) -> None:
        """Prepare."""
        self.now = 100.0
        self.mailbox = MemoryMailbox(*letters)
        self.courier = MemoryCourier()
        self.may_act = True
        leadership = Leadership()
        leadership.gain(TERM, float("inf"), "elected")
        app = Celery("shop", set_as_current=False)

        @app.task(name="shop.on_order", shared=False)
        def on_order(order: object) -> None:
            """Handle an order."""

        def apply_async(args: Any, **options: Any) -> None:
            if args[0] == "bad":
                raise ValueError("this is bad")
            assert options["retry"] is False
            options["producer"].loaded.append(options["headers"]["pgleader_notification"]["id"])

        self.task = cast("Any", app.tasks["shop.on_order"])
        self.task.apply_async = apply_async
        self.round = Round(
            app,
            {"orders": (Route("shop.on_order"),)},
            TERM,
            self.mailbox,
            self.courier,
            leadership,
            lambda: self.may_act,
            lambda: self.now,
        )

    def turn(self) -> bool:
        return self.round.turn()

    def all_turns(self) -> list[int]:
        """Take turns until nothing is left to do at once."""
        while self.turn():
            pass
        return self.courier.taken


def make(number: int, key: str | None = None, *, payload: str = "1", attempts: int = 0) -> Letter:
    return Letter(number, UID, "orders", key, payload, attempts)


def test_notifications_are_dispatched_in_order() -> None:
    """In batches, until nothing is left."""
    desk = Desk(*(make(number) for number in range(1, 9)))
    assert desk.all_turns() == list(range(1, 9))
    assert desk.mailbox.letters == []


def test_notifications_with_one_key_are_never_in_one_batch() -> None:
    """Where a broker may take the later one and refuse the earlier."""
    desk = Desk(make(1, "k"), make(2, "k"), make(3, "l"))
    desk.courier.may_take_some = True
    assert desk.all_turns() == [1, 3, 2]
    assert desk.courier.batches == [[1, 3], [2]]


def test_notification_behind_a_failed_one_waits_for_it() -> None:
    """Also where it would be sent in a later part of the batch."""
    desk = Desk(make(1, "k", payload='"bad"'), make(2, "k"), make(3, "l"))
    desk.courier.may_take_some = True
    assert desk.all_turns() == [3]


def test_failed_notification_rests_with_its_key() -> None:
    """The others are sent; it is tried again when it has rested, each time for twice as long."""
    desk = Desk(make(1, "k", payload='"bad"'), make(2, "k"), make(3, "l"), make(4))
    assert desk.all_turns() == [3, 4]
    assert [letter.attempts for letter in desk.mailbox.letters] == [1, 0]
    desk.now += FIRST_REST * 0.9
    assert desk.turn() is False
    desk.now += FIRST_REST * 0.2
    assert desk.all_turns() == [3, 4, 1, 2], "as it can be sent now"


def test_notification_becomes_a_dead_letter_after_its_last_attempt() -> None:
    """Those behind it are sent."""
    bad = make(1, "k", payload='"bad"', attempts=MOST_ATTEMPTS - 1)
    desk = Desk(bad, make(2, "k"))
    assert desk.all_turns() == [2]
    assert desk.mailbox.dead == [(1, "ValueError: this is bad")]


@pytest.mark.parametrize("payload", ["[" * 100_000, "1" + "0" * 5_000, "9" * 400 + ".5"])
def test_unreadable_payload_fails_alone(payload: str) -> None:
    """As if its task could not be sent."""
    desk = Desk(make(1, payload=payload, attempts=MOST_ATTEMPTS - 1), make(2))
    assert desk.all_turns() == [2]
    ((_, error),) = desk.mailbox.dead
    assert error.startswith("NotificationError: the payload cannot be read")


def test_absent_broker_counts_as_no_attempt() -> None:
    """All notifications are sent again."""
    desk = Desk(make(1), make(2))
    desk.courier.is_there = False
    with pytest.raises(BrokerAway):
        desk.turn()
    assert [letter.attempts for letter in desk.mailbox.letters] == [0, 0]
    desk.courier.is_there = True
    assert desk.all_turns() == [1, 2]


def test_notification_that_cuts_the_connection_is_found() -> None:
    """By sending one by one; those behind it with its key stay in order."""
    desk = Desk(make(1), make(2, "k", attempts=MOST_ATTEMPTS - 1), make(3, "k"), make(4))
    desk.courier.bad[2] = Cut("too large")
    desk.turn()
    assert desk.courier.taken == [1]
    assert desk.mailbox.dead == [(2, "too large")]
    assert desk.all_turns() == [1, 3, 4]


def test_refused_notification_waits_without_an_attempt_counted() -> None:
    """The broker has no room for it now; the others are sent."""
    desk = Desk(make(1, "k", attempts=MOST_ATTEMPTS - 1), make(2, "k"), make(3))
    desk.courier.bad[1] = Refused("the queue is full")
    assert desk.all_turns() == [3]
    assert [letter.attempts for letter in desk.mailbox.letters] == [MOST_ATTEMPTS - 1, 0]
    del desk.courier.bad[1]
    desk.now += REFUSED_REST
    assert desk.all_turns() == [3, 1, 2]


def test_relay_waits_for_a_broker_that_refuses_everything() -> None:
    """Rather than asking it for each notification."""
    desk = Desk(*(make(number) for number in range(1, 4)))
    desk.courier.bad = {number: Refused("no memory") for number in range(1, 4)}
    with pytest.raises(Refused):
        desk.turn()
    assert len(desk.mailbox.letters) == 3
    assert desk.mailbox.dead == []


def test_relay_that_may_not_act_sends_nothing() -> None:
    """Not even the rest of a batch."""
    desk = Desk(make(1))
    desk.may_act = False
    assert desk.turn() is False
    assert desk.courier.taken == []


def test_new_notifications_pass_a_backlog() -> None:
    """If their keys have nothing to do with it; the order within a key is kept."""
    desk = Desk(*(make(number, "backlog") for number in range(1, 8)))
    desk.round.go_on(_ended(), cast("Doorbell", None))
    desk.round._seen = 7  # noqa: SLF001 - what it had seen when it began
    desk.mailbox.letters += [make(8, "backlog"), make(9, "new"), make(10)]
    desk.turn()
    assert desk.courier.taken == [1, 2, 3, 9, 10]
    assert desk.all_turns() == [1, 2, 3, 9, 10, 4, 5, 6, 7, 8]


def test_task_id_is_made_of_notification_and_task() -> None:
    """So that a second dispatch is known to be the same."""
    seen: list[str] = []
    desk = Desk(make(1))
    desk.task.apply_async = lambda *_, task_id, **__: seen.append(task_id)
    desk.turn()
    assert seen == [str(uuid5(UID, "shop.on_order"))]


class Nights(threading.Event):
    """What happens to a relay while it waits, up to the end, and what it does."""

    def __init__(self, *letters: Letter) -> None:
        """Begin with letters."""
        super().__init__()
        self.desk = Desk(*letters)
        self.mailbox = self.desk.mailbox
        # What comes in each nap.
        self.naps: list[Letter] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.mailbox.diary.append(f"nap {timeout:.3f} s")
        self.desk.now += timeout
        self.mailbox.letters += self.naps[:1]
        del self.naps[:1]
        return self.is_set()

    def told(self, *nights: Callable[[], bool]) -> list[str]:
        """Let these happen, one in each wait, and the end in the last; return what the relay did."""
        self.mailbox.nights = [*nights, self._end]
        with closing(Doorbell()) as bell:
            self.desk.round.go_on(self, bell)
        return self.mailbox.diary

    def pass_by(self, seconds: float = A_WHILE) -> Callable[[], bool]:
        """Have time go by."""

        def night() -> bool:
            self.desk.now += seconds
            return False

        return night

    def wake(self, *letters: Letter, after: float = A_WHILE) -> Callable[[], bool]:
        """Have these come, with a wake-up, after so many seconds."""

        def night() -> bool:
            self.desk.now += after
            self.mailbox.letters += letters
            return True

        return night

    def _end(self) -> bool:
        self.set()
        return False


def test_idle_relay_sleeps_until_it_is_woken() -> None:
    """Senders see it asleep all the while, so it need not lie down again."""
    nights = Nights(make(1))
    diary = nights.told(nights.pass_by(), nights.wake(make(2)))
    assert diary == ["nap 0.010 s", "sleep", "5.00 s", "4.90 s", "5.00 s"]
    assert nights.desk.courier.taken == [1, 2]


def test_sleeping_relay_looks_again_without_a_wake_up() -> None:
    """After a while."""
    nights = Nights()
    assert nights.told(nights.pass_by(POLL)) == ["sleep", "5.00 s", "5.00 s"]


def test_sleeping_relay_looks_when_a_rest_is_over() -> None:
    """And not before."""
    nights = Nights(make(1, payload='"bad"'))
    nights.mailbox.is_any_waiting = lambda **_: False  # type: ignore[method-assign]  # it rests
    diary = nights.told(nights.pass_by(FIRST_REST - 0.02), nights.pass_by(0.03))
    assert diary == ["nap 0.010 s", "sleep", "0.19 s", "0.01 s", "5.00 s"]
    assert nights.desk.courier.taken == [1], "as it can be sent now"


def test_relay_does_not_sleep_while_senders_are_on_the_way() -> None:
    """It looks again soon, then less and less often; senders that come after its first look may wake it."""
    nights = Nights()
    nights.mailbox.is_quiet = False
    diary = nights.told(*[nights.pass_by()] * 4, nights.pass_by(0.2), nights.pass_by(0.2))
    assert [what for what in diary if what != "got up"] == [
        *("up", "0.01 s"),
        *("light sleep", "0.02 s"),
        *("light sleep", "0.04 s"),
        *("light sleep", "0.08 s"),
        *("light sleep", "0.16 s"),
        *("light sleep", "0.25 s", "0.05 s"),
    ]


def test_woken_relay_leaves_nothing_behind() -> None:
    """What a batch had no room for, and what was behind a dead letter, wakes nobody any more."""
    nights = Nights()
    dies = make(4, "k", payload='"bad"', attempts=MOST_ATTEMPTS - 1)
    nights.told(
        nights.pass_by(),
        nights.wake(make(1), make(2), make(3, "k"), dies, make(5, "k")),
    )
    assert nights.desk.courier.taken == [1, 2, 3, 5]


def test_relay_that_may_not_act_sleeps() -> None:
    """Whatever waits."""
    nights = Nights(make(1))
    nights.desk.may_act = False
    assert nights.told() == ["sleep", "5.00 s"]
    assert nights.desk.courier.taken == []


def test_relay_that_may_not_act_any_more_sleeps() -> None:
    """Whatever its last look has found."""
    nights = Nights(make(1))
    original = nights.wait

    def wait(timeout: float | None = None) -> bool:
        nights.desk.may_act = False
        return original(timeout)

    nights.wait = wait  # type: ignore[method-assign]  # it happens in the nap after that look
    assert nights.told() == ["nap 0.010 s", "sleep", "5.00 s"]


def test_relay_sees_what_came_before_it_lay_down() -> None:
    """No sender wakes it for that."""
    nights = Nights()
    original = nights.mailbox.lie_down

    def lie_down(*, lightly: bool) -> bool:
        if not nights.desk.courier.taken:
            nights.mailbox.letters.append(make(1))
        return original(lightly=lightly)

    nights.mailbox.lie_down = lie_down  # type: ignore[method-assign]  # a sender who was on the way
    assert nights.told() == ["sleep", "got up", "nap 0.010 s", "sleep", "5.00 s"]
    assert nights.desk.courier.taken == [1]


def test_relay_is_not_woken_more_often_than_it_would_look() -> None:
    """Where notifications follow each other closely, it does not lie down before a look has found nothing."""
    nights = Nights()
    nights.naps = [make(2), make(3)]
    diary = nights.told(nights.wake(make(1), after=0.003), nights.wake(make(4), after=0.012))
    assert diary == [
        *("sleep", "5.00 s"),
        *("got up", "nap 0.010 s", "nap 0.010 s", "nap 0.010 s"),
        *("sleep", "5.00 s", "5.00 s"),
    ]
    assert nights.desk.courier.taken == [1, 2, 3, 4]


@pytest.mark.parametrize("woken", [True, False])
def test_relay_looks_again_before_it_sleeps_where_senders_are_busy(woken: bool) -> None:  # noqa: FBT001 - of a test
    """After it was woken, and after it has found something."""
    nights = Nights()
    nights.mailbox.is_quiet = False

    def come() -> bool:
        nights.desk.now += A_WHILE
        if not woken:
            nights.mailbox.letters.append(make(1))
        return woken

    diary = nights.told(nights.pass_by(), come)
    assert [what for what in diary if what not in {"got up", "nap 0.010 s"}] == [
        *("up", "0.01 s"),
        *("light sleep", "0.02 s"),
        *("up", "0.01 s"),
    ]


def _ended() -> threading.Event:
    ended = threading.Event()
    ended.set()
    return ended
