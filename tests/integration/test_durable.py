"""Durable notifications: written in the sender's transaction, and relayed to a real broker."""

from __future__ import annotations

import base64
import contextlib
import json
import string
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import kombu
import psutil
import psycopg
import psycopg2  # type: ignore[import-untyped]
import pytest
import redis
import sqlalchemy
from celery import Celery
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session as OrmSession
from sqlalchemy.orm import scoped_session, sessionmaker

from celery_pgleader import NotificationError, PgLeaderError, Term, notify
from celery_pgleader.channels import Route
from celery_pgleader.config import Config
from celery_pgleader.election import Leadership
from celery_pgleader.election.lock_session import LockSession
from celery_pgleader.notifications.relay import Relay
from celery_pgleader.notifications.sending import DEEPEST
from celery_pgleader.store import LEDGER_TERMS
from celery_pgleader.threads import Ending
from example_app.servers import EmbeddedValkey
from tests.support.eventually import eventually
from tests.support.rabbitmq import LARGEST_MESSAGE, RabbitMQ

FOREVER = float("inf")
ORDERS: Mapping[str, tuple[Route, ...]] = {"orders": (Route("shop.on_order"),)}


def ask(database: str, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(database, autocommit=True) as connection:
        cursor = connection.execute(query.encode(), parameters)
        return cursor.fetchall() if cursor.description else []


def waiting(database: str) -> list[Any]:
    """Return the payloads that wait."""
    return [payload for (payload,) in ask(database, "select payload from pgleader.notifications order by id")]


def dead(database: str) -> list[tuple[Any, int, str]]:
    """Return the payloads of dead letters, the attempts, and the reasons."""
    query = "select payload, attempts, error from pgleader.dead_letters order by id"
    return [(payload, attempts, error) for payload, attempts, error in ask(database, query)]


def do_nothing(payload: Any) -> None:
    """Take a notification."""


class Office:
    """A leader that does nothing but relay, in a thread of this process."""

    def __init__(self, database: str, broker: str, queue: str = "celery", **transport_options: Any) -> None:
        """Prepare an app with two tasks."""
        self.database = database
        self.broker = broker
        self.queue = queue
        self.app = Celery("shop", broker=broker, set_as_current=False)
        self.app.conf.update(task_default_queue=queue, broker_transport_options=transport_options)
        for name in ("shop.on_order", "shop.log"):
            self.app.task(name=name, shared=False)(do_nothing)
        self.config = Config(database_url=database, election="shop")
        self._terms = 0
        self._stop: Callable[[], None] | None = None

    def lead(self, channels: Mapping[str, tuple[Route, ...]]) -> tuple[Term, Leadership]:
        """Begin a term, and relay."""
        self.stop()
        session = LockSession.open(self.config, "a", LEDGER_TERMS)
        place = session.take_place()
        session.await_lock(lambda: False)
        assert place is not None
        minted = session.mint_term(place)
        assert minted is not None
        number, pid = minted
        # Whether the lock is held is of no concern here.
        session.release("resigned")
        session.close()
        term = Term(number, "shop", "a", pid)
        leadership = Leadership()
        leadership.gain(term, FOREVER, "elected")
        relay = Relay(self.app, self.config, leadership, channels)
        ended = Ending()

        def run() -> None:
            while not ended.is_set():
                relay.run(term, ended)
                ended.wait(0.05)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()

        def stop() -> None:
            ended.set()
            leadership.lose(term, "the test is over")
            thread.join(30)
            assert not thread.is_alive()

        self._stop = stop
        return term, leadership

    def stop(self) -> None:
        """End the term."""
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()

    def messages(self) -> list[dict[str, Any]]:
        """Return the headers of the messages in a Redis, oldest first, each with the payload."""
        with redis.Redis.from_url(self.broker) as client:
            listed: list[Any] = client.lrange(self.queue, 0, -1)
        found = []
        for message in (json.loads(text) for text in reversed(listed)):
            ((payload,), _, _) = json.loads(base64.b64decode(message["body"]))
            found.append({**message["headers"], "payload": payload})
        return found

    def payloads(self) -> list[Any]:
        """Return the payloads of the messages in a Redis, oldest first."""
        return [message["payload"] for message in self.messages()]

    def await_payloads(self, *expected: Any) -> None:
        """Wait until a Redis holds messages with these payloads, in this order."""
        eventually(lambda: self.payloads() == list(expected))

    def await_empty(self, timeout: float = 30.0) -> None:
        """Wait until nothing waits."""
        eventually(lambda: not ask(self.database, "select 1 from pgleader.notifications limit 1"), timeout)


@pytest.fixture(autouse=True)
def short_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what failed, and an absent broker, tried again ten times as soon."""
    monkeypatch.setattr("celery_pgleader.notifications.relay.FIRST_REST", 0.02)


@pytest.fixture
def office(database: str, valkey: str) -> Iterator[Office]:
    """Give an office on Valkey."""
    made = Office(database, valkey)
    yield made
    made.stop()


# Connections


@contextlib.contextmanager
def psycopg_connection(database: str) -> Iterator[tuple[Any, Any, Any]]:
    with psycopg.connect(database) as connection:
        yield connection, connection.commit, connection.rollback


@contextlib.contextmanager
def psycopg_of_other_habits(database: str) -> Iterator[tuple[Any, Any, Any]]:
    """Give one whose cursors know other placeholders, and make other rows."""
    with psycopg.connect(database, cursor_factory=psycopg.RawCursor) as connection:
        connection.row_factory = dict_row
        yield connection, connection.commit, connection.rollback


@contextlib.contextmanager
def psycopg2_connection(database: str) -> Iterator[tuple[Any, Any, Any]]:
    with contextlib.closing(psycopg2.connect(database)) as connection:
        yield connection, connection.commit, connection.rollback


@contextlib.contextmanager
def django_connection(database: str) -> Iterator[tuple[Any, Any, Any]]:
    import django
    from django.conf import settings as django_settings
    from django.db.utils import ConnectionHandler

    if not django_settings.configured:
        django_settings.configure(LOGGING_CONFIG=None)
        django.setup()
    parts = conninfo_to_dict(database)
    where = {"NAME": parts["dbname"], "USER": parts["user"], "HOST": parts["host"], "PORT": parts["port"]}
    handler = ConnectionHandler({"default": {"ENGINE": "django.db.backends.postgresql", **where}})
    connection = handler["default"]
    connection.set_autocommit(False)
    try:
        yield connection, connection.commit, connection.rollback
    finally:
        connection.close()


def engine(database: str, driver: str) -> sqlalchemy.Engine:
    return sqlalchemy.create_engine(
        database.replace("postgresql://", f"postgresql+{driver}://"), poolclass=sqlalchemy.NullPool
    )


@contextlib.contextmanager
def sqlalchemy_connection(database: str, driver: str = "psycopg") -> Iterator[tuple[Any, Any, Any]]:
    with engine(database, driver).connect() as connection:
        yield connection, connection.commit, connection.rollback


@contextlib.contextmanager
def sqlalchemy_on_psycopg2(database: str) -> Iterator[tuple[Any, Any, Any]]:
    with sqlalchemy_connection(database, "psycopg2") as given:
        yield given


@contextlib.contextmanager
def sqlalchemy_session(database: str) -> Iterator[tuple[Any, Any, Any]]:
    with OrmSession(engine(database, "psycopg")) as session:
        yield session, session.commit, session.rollback


@contextlib.contextmanager
def sqlalchemy_session_of_ones_own(database: str) -> Iterator[tuple[Any, Any, Any]]:
    class Session(OrmSession):
        """As SQLModel and Flask-SQLAlchemy have one."""

    with Session(engine(database, "psycopg")) as session:
        yield session, session.commit, session.rollback


@contextlib.contextmanager
def sqlalchemy_scoped_session(database: str) -> Iterator[tuple[Any, Any, Any]]:
    session = scoped_session(sessionmaker(engine(database, "psycopg")))
    try:
        yield session, session.commit, session.rollback
    finally:
        session.remove()


CONNECTIONS = [
    psycopg_connection,
    psycopg_of_other_habits,
    psycopg2_connection,
    django_connection,
    sqlalchemy_connection,
    sqlalchemy_on_psycopg2,
    sqlalchemy_session,
    sqlalchemy_session_of_ones_own,
    sqlalchemy_scoped_session,
]
AWKWARD = {"note": """it's "quoted" \\ %s %(channel)s :key ::jsonb {0} $1""", "number": 1.5, "none": None}


@pytest.mark.parametrize("kind", CONNECTIONS)
def test_durable_notification_is_part_of_the_senders_transaction(kind: Any, database: str) -> None:
    """Rolled back, it was never sent; committed, it was; and what is refused leaves the transaction as it was."""
    with kind(database) as (connection, commit, rollback):
        notify("orders", AWKWARD, key="k'1", connection=connection)
        assert waiting(database) == [], "not before it is committed"
        rollback()
        assert waiting(database) == []
        notify("it's: %s :x", AWKWARD, key="k'1 :x", connection=connection)
        with pytest.raises(NotificationError):
            notify("orders", "\0", connection=connection)
        with pytest.raises(PgLeaderError):
            notify("", 1, connection=connection)
        notify("orders", [], connection=connection)
        commit()
    query = "select channel, key, payload from pgleader.notifications order by id"
    assert ask(database, query) == [("it's: %s :x", "k'1 :x", AWKWARD), ("orders", None, [])]


@pytest.mark.parametrize("kind", CONNECTIONS)
def test_raw_notification_is_part_of_the_senders_transaction(kind: Any, database: str) -> None:
    """Heard when it is committed, and only then."""
    with psycopg.connect(database, autocommit=True) as listener, kind(database) as (connection, commit, rollback):
        listener.execute('listen "it\'s: %s"')
        notify("it's: %s", "rolled back", durable=False, connection=connection)
        rollback()
        notify("it's: %s", AWKWARD, durable=False, connection=connection)
        commit()
        (heard,) = listener.notifies(timeout=30, stop_after=1)
        assert json.loads(heard.payload) == AWKWARD


def test_asynchronous_connection_is_refused(database: str) -> None:
    """An asynchronous connection would send nothing, and say nothing."""
    asynchronous = create_async_engine(database.replace("postgresql://", "postgresql+psycopg://")).connect()
    with pytest.raises(TypeError, match="AsyncConnection is asynchronous"):
        notify("orders", 1, connection=asynchronous)
    with pytest.raises(TypeError, match="must be of psycopg, psycopg2, Django or SQLAlchemy"):
        notify("orders", 1, connection=object())


def test_notify_opens_a_connection_if_none_is_given(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To where the current app's election is held."""
    app = Celery("shop", set_as_current=False)
    app.conf.pgleader_database_url = database
    monkeypatch.setattr("celery.current_app", app)
    notify("orders", {"id": 1})
    assert waiting(database) == [{"id": 1}]


# What goes in comes out

# Postgres itself has no NUL and no lone surrogates, and Python tells apart what to JSON is one number.
texts = st.text(st.characters() | st.sampled_from("'\"\\\0%:$\u2028\ud800\udfff{}")) | st.just("\\u0000")
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | texts
    | st.sampled_from([1_000_000, 100]).flatmap(lambda size: st.sampled_from("xé'\\").map(lambda one: one * size))
    | st.just(5_000).map(lambda digits: 10**digits)
)
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=20)
channels = texts | st.text(string.ascii_letters, min_size=60, max_size=70)


def alike(one: Any, other: Any) -> bool:
    """Tell whether two JSON values are one, with numbers compared as double precision has them."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float) and isinstance(other, int) and not isinstance(other, bool):
        return one == float(other)
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


class Ends:
    """Both ends of a database: a transaction to send in, and sessions that see what comes of it."""

    def __init__(self, database: str) -> None:
        """Connect."""
        self.sender = psycopg.connect(database)
        self.outside = psycopg.connect(database, autocommit=True)
        self.heard: set[str] = set()

    def listen(self, channel: str) -> None:
        if channel not in self.heard:
            self.heard.add(channel)
            self.outside.execute(psycopg.sql.SQL("listen {}").format(psycopg.sql.Identifier(channel)))

    def written(self) -> list[tuple[str, str | None, Any]]:
        """Return what was written, and forget it."""
        return self.outside.execute(
            "delete from pgleader.notifications returning channel, key, payload::text"
        ).fetchall()


@pytest.fixture
def ends(database: str) -> Iterator[Ends]:
    """Give both ends."""
    both = Ends(database)
    yield both
    both.sender.close()
    both.outside.close()


thrown = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@thrown
@given(channel=channels, payload=values, key=st.none() | texts)
@example(channel="orders", payload={"a": ["\\u0000", "\\\\u0000"]}, key="")
@example(channel="orders", payload="\\\0", key=None)
def test_incident_12_any_payload_from_python_is_kept_or_refused(
    ends: Ends, channel: str, payload: Any, key: str | None
) -> None:
    """Comes out as it went in, or is refused before anything is sent, and the transaction can be used on."""
    ends.sender.execute("select 1")
    try:
        notify(channel, payload, key=key, connection=ends.sender)
    except PgLeaderError:
        notify("after", "refused", connection=ends.sender)
        ends.sender.commit()
        assert ends.written() == [("after", None, '"refused"')]
    else:
        ends.sender.commit()
        ((written_channel, written_key, text),) = ends.written()
        assert (written_channel, written_key) == (channel, key)
        assert alike(payload, json.loads(text))


@pytest.mark.parametrize("depth", [1, 499, 500, 999, 100_000])
def test_deeply_nested_payload_is_kept_or_refused(ends: Ends, depth: int) -> None:
    """As deep as it is certain to be readable, and no deeper."""
    payload: Any = []
    for _ in range(depth - 1):
        payload = [payload]
    if depth <= DEEPEST:
        notify("orders", payload, connection=ends.sender)
        ends.sender.commit()
        assert [json.loads(text) for _, _, text in ends.written()] == [payload]
        return
    with pytest.raises(NotificationError):
        notify("orders", payload, connection=ends.sender)
    ends.sender.commit()
    assert ends.written() == []


@thrown
@given(channel=channels, payload=values)
@example(channel="orders", payload="é" * 3_998)
@example(channel="orders", payload="é" * 3_999)
def test_incident_12_any_raw_payload_from_python_is_heard_or_refused(ends: Ends, channel: str, payload: Any) -> None:
    """It is heard when the transaction is committed, and only then."""
    ends.listen("after")
    try:
        notify(channel, payload, durable=False, connection=ends.sender)
    except PgLeaderError:
        notify("after", "refused", durable=False, connection=ends.sender)
        ends.sender.commit()
        (heard,) = ends.outside.notifies(timeout=30, stop_after=1)
        assert (heard.channel, heard.payload) == ("after", '"refused"')
    else:
        ends.sender.rollback()
        ends.listen(channel)
        notify(channel, payload, durable=False, connection=ends.sender)
        ends.sender.commit()
        (heard,) = ends.outside.notifies(timeout=30, stop_after=1)
        assert heard.channel == channel
        assert alike(payload, json.loads(heard.payload))


@thrown
@given(channel=channels, payload=values, key=st.none() | texts)
def test_incident_12_any_payload_from_sql_is_kept_or_refused(
    ends: Ends, channel: str, payload: Any, key: str | None
) -> None:
    """Comes out as it went in, or Postgres refuses it: with a savepoint the transaction can be used on."""
    ends.sender.execute("savepoint before")
    try:
        text = json.dumps(payload, allow_nan=False)
        ends.sender.execute("select pgleader.notify(%s, %s::jsonb, %s)", [channel, text, key])
    except (psycopg.Error, ValueError, RecursionError):
        ends.sender.execute("rollback to before")
        ends.sender.execute("select pgleader.notify('after', '1')")
        ends.sender.commit()
        assert ends.written() == [("after", None, "1")]
    else:
        ends.sender.commit()
        ((written_channel, written_key, text),) = ends.written()
        assert (written_channel, written_key) == (channel, key)
        assert alike(payload, json.loads(text))


def test_payload_that_python_cannot_read_becomes_a_dead_letter(office: Office) -> None:
    """Though Postgres can hold it: numbers beyond all measure, nesting beyond Python's. What is behind it goes on."""
    for text in ("1e5000", "1e400 ", "[" * 3_000 + "]" * 3_000):
        ask(office.database, "select pgleader.notify('orders', %s::jsonb, 'k')", text)
    ask(office.database, "select pgleader.notify('orders', (repeat('9', 400) || '.5')::jsonb, 'k')")
    ask(office.database, "select pgleader.notify('orders', '\"behind\"', 'k')")
    office.lead(ORDERS)
    office.await_empty()
    assert office.payloads() == [10**400, "behind"], dead(office.database)
    errors = [error for (error,) in ask(office.database, "select error from pgleader.dead_letters order by id")]
    assert len(errors) == 3
    assert all("the payload cannot be read" in error for error in errors), errors


@settings(thrown, max_examples=15)
@given(payloads=st.lists(values, min_size=4, max_size=20))
def test_any_payload_reaches_the_broker(throughout: Office, payloads: list[Any]) -> None:
    """Through the relay, in order."""
    sent = []
    with psycopg.connect(throughout.database) as connection:
        for payload in payloads:
            with contextlib.suppress(NotificationError):
                notify("orders", payload, key="k", connection=connection)
                sent.append(payload)
    throughout.await_empty()
    came = throughout.payloads()
    with redis.Redis.from_url(throughout.broker) as client:
        client.delete("celery")
    assert alike(sent, came)


@pytest.fixture
def throughout(office: Office) -> Office:
    """Give an office that relays from the start."""
    office.lead(ORDERS)
    return office


# The relay


def send(office: Office, *payloads: Any, channel: str = "orders", key: str | None = None) -> None:
    with psycopg.connect(office.database) as connection:
        for payload in payloads:
            notify(channel, payload, key=key, connection=connection)


def test_messages_name_their_notification(office: Office) -> None:
    """Each task of the channel gets one, with headers; a task id of its own; and the text if it wants that."""
    send(office, {"id": 1}, key="k")
    ((uid, number),) = ask(office.database, "select uid, id from pgleader.notifications")
    routes = (Route("shop.on_order", deduplicate=True), Route("shop.log", decode="text", options={"headers": {"x": 1}}))
    term, _ = office.lead({"orders": routes})
    office.await_empty()
    first, second = office.messages()
    assert (first["task"], first["payload"], first["id"]) == (
        "shop.on_order", {"id": 1}, str(uuid.uuid5(uid, "shop.on_order")),
    )  # fmt: skip
    assert (second["task"], second["payload"], second["x"]) == ("shop.log", '{"id": 1}', 1)
    assert second["id"] == str(uuid.uuid5(uid, "shop.log"))
    for message, deduplicate in ((first, True), (second, False)):
        assert message["pgleader_channel"] == "orders"
        assert message["pgleader_term"] == term.number
        header = {"id": number, "channel": "orders", "key": "k", "deduplicate": deduplicate}
        assert message["pgleader_notification"] == header


def test_poison_notification_does_not_stop_those_behind_it(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order; meanwhile what has other keys does not wait for it."""
    send(office, 1, key="k")
    send(office, "poison", key="k", channel="unknown")
    send(office, 2, key="k", channel="unknown")
    send(office, 3, key="k")
    send(office, 4)
    office.app.task(name="shop.picky", shared=False)(do_nothing)
    picky = Route("shop.picky", options={"shadow": "x"})
    original = office.app.tasks["shop.picky"].apply_async

    def apply_async(args: Any, **options: Any) -> Any:
        if args[0] == "poison":
            raise ValueError("it does not like this one")
        return original(args, **options)

    monkeypatch.setattr(office.app.tasks["shop.picky"], "apply_async", apply_async)
    office.lead({**ORDERS, "unknown": (picky,)})
    office.await_empty()
    # Keys are a channel's own.
    office.await_payloads(1, 3, 4, 2)
    assert dead(office.database) == [("poison", 5, "ValueError: it does not like this one")]


@pytest.mark.parametrize(
    ("route", "reason"),
    [
        (Route("shop.missing"), "LookupError: no task shop.missing in this app"),
        (Route("shop.log", options={"headers": {"x": object()}}), "not JSON serializable"),
        (Route("shop.log", options={"serializer": "none"}), "SerializerNotInstalled"),
        (Route("shop.log", options={"countdown": "soon"}), "Error"),
    ],
)
def test_notification_that_can_never_be_sent_becomes_a_dead_letter(route: Route, reason: str, office: Office) -> None:
    """With its reason; what shares its batch is sent once."""
    send(office, "bad", channel="bad")
    send(office, 1, 2)
    office.lead({**ORDERS, "bad": (route,)})
    office.await_empty()
    assert office.payloads() == [1, 2]
    ((payload, attempts, error),) = dead(office.database)
    assert (payload, attempts) == ("bad", 5)
    assert reason in error


def test_task_of_another_app_is_sent_to_its_queue(office: Office) -> None:
    """Then it need not be known here."""
    send(office, 1)
    office.lead({"orders": (Route("elsewhere.on_order", queue="celery"),)})
    office.await_empty()
    assert [message["task"] for message in office.messages()] == ["elsewhere.on_order"]


def test_notification_without_a_route_waits_for_one(office: Office) -> None:
    """Until a leader has one."""
    send(office, "later", channel="returns")
    send(office, "now")
    office.lead(ORDERS)
    office.await_payloads("now")
    assert waiting(office.database) == ["later"]
    office.lead({"returns": (Route("shop.log"),)})
    office.await_payloads("now", "later")


def test_relay_finds_notifications_without_a_wake_up(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `pgleader.wake = off` there is no NOTIFY at all."""
    monkeypatch.setattr("celery_pgleader.notifications.relay.POLL", 0.3)
    office.lead(ORDERS)
    send(office, "first")
    office.await_payloads("first")
    with psycopg.connect(office.database) as listener, psycopg.connect(office.database) as connection:
        listener.autocommit = True
        listener.execute("listen pgleader")
        # Somebody sleeps.
        listener.execute("select pg_advisory_lock_shared(1885826128, 0)")
        connection.execute("set pgleader.wake = off")
        notify("orders", "quiet", connection=connection)
        connection.commit()
        office.await_payloads("first", "quiet")
        assert list(listener.notifies(timeout=0)) == []


def test_wake_up_needs_no_poll(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """However seldom it is looked."""
    monkeypatch.setattr("celery_pgleader.notifications.relay.POLL", 3_600.0)
    office.lead(ORDERS)
    for number in range(5):
        send(office, number)
        office.await_payloads(*range(number + 1))


def test_late_commit_is_not_passed_over(office: Office) -> None:
    """Though those that were begun after it have been dispatched."""
    office.lead(ORDERS)
    with psycopg.connect(office.database) as late:
        notify("orders", "late", connection=late)
        send(office, 1, 2)
        office.await_payloads(1, 2)
    office.await_payloads(1, 2, "late")


def test_stale_relay_deletes_nothing(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was superseded while it was publishing: its successor dispatches again, under the same task ids."""
    send(office, 1, 2)
    term, _ = office.lead({})
    office.stop()
    leadership = Leadership()
    leadership.gain(term, FOREVER, "elected")
    task = office.app.tasks["shop.on_order"]
    original = task.apply_async

    def apply_async(*args: Any, **options: Any) -> Any:
        ask(office.database, "update pgleader.elections set term = term + 1")
        return original(*args, **options)

    monkeypatch.setattr(task, "apply_async", apply_async)
    # As its process would be told only later.
    Relay(office.app, office.config, leadership, ORDERS).run(term, Ending())
    assert office.payloads() == [1, 2]
    assert waiting(office.database) == [1, 2]
    monkeypatch.undo()
    office.lead(ORDERS)
    office.await_empty()
    assert office.payloads() == [1, 2, 1, 2]
    ids = [message["id"] for message in office.messages()]
    assert ids[:2] == ids[2:]


def test_session_lost_before_the_deletion_repeats_task_ids(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between publication and deletion: dispatched again, under the same task ids, in order."""
    from celery_pgleader.store import Mailbox

    original = Mailbox.dispatched
    cut: list[bool] = []

    def dispatched(self: Mailbox, letters: Any) -> None:
        if not cut:
            cut.append(True)
            ask(
                office.database,
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name like %s",
                "pgleader relay%",
            )
        original(self, letters)

    monkeypatch.setattr(Mailbox, "dispatched", dispatched)
    send(office, 1, 2, 3, key="k")
    office.lead(ORDERS)
    office.await_empty()
    assert office.payloads() == [1, 2, 3, 1, 2, 3]
    ids = [message["id"] for message in office.messages()]
    assert ids[:3] == ids[3:]


def test_retried_dead_letter_has_the_same_task_id(office: Office) -> None:
    """When it comes back from the dead letters, so that what has been run already is not run again."""
    from celery_pgleader.store import sql as statements

    send(office, "bad", channel="bad")
    ((uid,),) = ask(office.database, "select uid from pgleader.notifications")
    office.lead({"bad": (Route("shop.missing"),)})
    office.await_empty()
    with psycopg.connect(office.database) as connection:
        connection.execute(statements.RETRY_DEAD, {"ids": None, "channel": "bad"})
    office.lead({"bad": (Route("shop.log"),)})
    office.await_payloads("bad")
    assert office.messages()[0]["id"] == str(uuid.uuid5(uid, "shop.log"))
    assert dead(office.database) == []


def test_absent_broker_loses_nothing(database: str, own_valkey: EmbeddedValkey) -> None:
    """Nothing is lost or counted against anybody, and the order is kept."""
    office = Office(database, own_valkey.url)
    office.lead(ORDERS)
    send(office, 0, key="k")
    office.await_payloads(0)
    own_valkey.stop()
    send(office, *range(1, 700), key="k")
    # It has tried, and goes on to.
    eventually(lambda: [(1,)] and len(waiting(database)) == 699)
    own_valkey.start()
    office.await_empty(60)
    office.stop()
    assert office.payloads() == list(range(700))
    assert dead(database) == []


def test_full_broker_is_waited_for(database: str, own_valkey: EmbeddedValkey) -> None:
    """Redis without memory answers, but takes nothing: that is no notification's fault."""
    office = Office(database, own_valkey.url)
    with redis.Redis.from_url(own_valkey.url) as client:
        client.config_set("maxmemory", "1")
        office.lead(ORDERS)
        send(office, 1, 2, 3, key="k")
        send(office, 4)
        tries = client.info("errorstats").get("errorstat_OOM", {"count": 0})["count"]
        eventually(lambda: client.info("errorstats").get("errorstat_OOM", {"count": 0})["count"] > tries + 6)
        assert len(waiting(database)) == 4
        assert ask(database, "select 1 from pgleader.notifications where attempts > 0") == []
        client.config_set("maxmemory", "0")
    office.await_empty(60)
    office.stop()
    assert [payload for payload in office.payloads() if payload != 4] == [1, 2, 3]
    assert dead(database) == []


# RabbitMQ


def taken(broker: str, queue: str) -> list[Any]:
    """Take all that is in a queue; return the payloads."""
    payloads = []
    with kombu.Connection(broker) as connection:
        bound = kombu.Queue(queue)(connection.default_channel)
        while (message := bound.get(no_ack=True)) is not None:
            payloads.append(message.payload[0][0])
    return payloads


@pytest.fixture
def amqp_office(database: str, rabbitmq: str) -> Iterator[Office]:
    """Give an office on RabbitMQ, with a queue of its own."""
    made = Office(database, rabbitmq, f"durable-{uuid.uuid4().hex[:8]}", confirm_publish=True)
    yield made
    made.stop()


@pytest.mark.xdist_group("rabbitmq")
def test_batch_arrives_in_order_on_rabbitmq(amqp_office: Office) -> None:
    """Though nobody waits for each confirmation."""
    send(amqp_office, *range(700), key="k")
    amqp_office.lead(ORDERS)
    amqp_office.await_empty()
    assert taken(amqp_office.broker, amqp_office.queue) == list(range(700))


@pytest.mark.xdist_group("rabbitmq")
@pytest.mark.parametrize("alone", [True, False])
def test_message_that_rabbitmq_refuses_becomes_a_dead_letter(amqp_office: Office, alone: bool) -> None:  # noqa: FBT001
    """A header that fits no frame has it end the connection. Those behind go on, in order."""
    large = {"headers": {"x": "x" * 200_000}}
    send(amqp_office, "large", channel="large", key="k")
    if not alone:
        send(amqp_office, 1, 2, key="k")
    amqp_office.lead({**ORDERS, "large": (Route("shop.log", options=large),)})
    amqp_office.await_empty(60)
    assert taken(amqp_office.broker, amqp_office.queue) == ([] if alone else [1, 2])
    ((payload, attempts, _),) = dead(amqp_office.database)
    assert (payload, attempts) == ("large", 5)


@pytest.mark.xdist_group("rabbitmq")
def test_message_too_large_for_rabbitmq_becomes_a_dead_letter(amqp_office: Office) -> None:
    """It closes the channel then. Those behind go on, in order."""
    send(amqp_office, 1, "x" * 2 * LARGEST_MESSAGE, 2, 3, key="k")
    send(amqp_office, 4)
    amqp_office.lead(ORDERS)
    amqp_office.await_empty(60)
    came = taken(amqp_office.broker, amqp_office.queue)
    # What was in its batch came more than once.
    assert list(dict.fromkeys(item for item in came if item != 4)) == [1, 2, 3]
    ((_, attempts, error),) = dead(amqp_office.database)
    assert attempts == 5
    assert "PRECONDITION_FAILED" in error


@pytest.mark.xdist_group("rabbitmq")
def test_full_queue_is_waited_for(amqp_office: Office) -> None:
    """It refuses messages: that is no notification's fault, and holds up no other queue for long."""
    amqp_office.app.conf.task_queues = [
        kombu.Queue(
            amqp_office.queue,
            kombu.Exchange(amqp_office.queue),
            amqp_office.queue,
            queue_arguments={"x-max-length": 2, "x-overflow": "reject-publish"},
        ),
        kombu.Queue(f"{amqp_office.queue}-other"),
    ]
    amqp_office.lead({**ORDERS, "other": (Route("shop.log", queue=f"{amqp_office.queue}-other"),)})
    send(amqp_office, 1, 2, 3, 4, key="k")
    send(amqp_office, 5, channel="other")
    eventually(lambda: 5 not in waiting(amqp_office.database))
    assert set(waiting(amqp_office.database)) <= {1, 2, 3, 4}
    came: list[Any] = []

    def drained() -> bool:
        came.extend(taken(amqp_office.broker, amqp_office.queue))
        return waiting(amqp_office.database) == []

    eventually(drained, 60)
    drained()
    assert list(dict.fromkeys(came)) == [1, 2, 3, 4]
    assert dead(amqp_office.database) == []


@pytest.mark.xdist_group("rabbitmq")
def test_stale_connection_costs_no_pause(
    amqp_office: Office, shared_rabbitmq: RabbitMQ, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as by a restart of the broker while there was nothing to send."""
    amqp_office.lead(ORDERS)
    send(amqp_office, 1)
    amqp_office.await_empty()
    shared_rabbitmq.restart()
    send(amqp_office, 2)
    amqp_office.await_empty()
    assert "wait for the broker" not in caplog.text
    assert taken(amqp_office.broker, amqp_office.queue) == [1, 2]


# Backlogs


@pytest.mark.parametrize("number", [40_000, pytest.param(200_000, marks=pytest.mark.long)])
def test_backlog_of_one_key_does_not_hold_up_others(office: Office, number: int) -> None:
    """What comes meanwhile, of other keys, passes it within a few batches, and memory stays flat."""
    ask(
        office.database,
        "insert into pgleader.notifications (channel, key, payload)"
        " select 'orders', 'backlog', jsonb_build_object('id', g, 'text', repeat('x', 500))"
        " from generate_series(1, %s) g",
        number,
    )
    with redis.Redis.from_url(office.broker) as client:
        # Nobody looks at those of the backlog one by one.
        office.lead({**ORDERS, "fresh": (Route("shop.log", queue="fresh"),)})
        eventually(lambda: client.llen("celery") > number / 40)
        process = psutil.Process()
        before = process.memory_info().rss
        waited_for = []
        for fresh in range(10):
            came = client.llen("celery")
            send(office, fresh, channel="fresh", key=f"fresh {fresh}")
            eventually(lambda fresh=fresh: client.llen("fresh") > fresh)  # type: ignore[misc]  # of this round
            waited_for.append(client.llen("celery") - came)
        eventually(lambda: client.llen("celery") > number / 8)
        ((left,),) = ask(office.database, "select count(*) from pgleader.notifications")
        assert left > number / 2, "it goes on still"
        grown = process.memory_info().rss - before
        office.stop()
    print(f"behind {waited_for} of the backlog; {grown} bytes more")
    assert max(waited_for) < 2_000
    # Half of what the backlog takes as text.
    assert grown < number * 270
