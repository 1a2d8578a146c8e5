"""The demo: `python -m example_app`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest

from example_app.summary import Fact, Fault, SlotRow, Ticks, count_leader_only, count_notifications, count_ticks, judge
from tests.support.eventually import eventually

REPOSITORY = Path(__file__).parents[2]
MARK = "SHOP_TEST_MARK"
WELL_KNOWN_PORTS = (5432, 5672, 6379)


class DemoProcess:
    """A demo in a process of its own, and all that it starts."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        """Start it."""
        self._mark = uuid.uuid4().hex
        self._output = folder / "output.txt"
        self._seen: set[psutil.Process] = set()
        # Not pytest's own, which Postgres' user could not enter if this is root.
        self.temp = Path(tempfile.mkdtemp(prefix="demo-test-"))
        self.temp.chmod(0o755)
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "example_app", *arguments],
                cwd=REPOSITORY,
                env={**os.environ, MARK: self._mark, "TMPDIR": str(self.temp)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._output.read_text()

    def remember_processes(self) -> None:
        """Note all processes that the demo has now, whatever becomes of their parents."""
        self._seen |= set(psutil.Process(self.process.pid).children(recursive=True))

    def left_over(self) -> list[psutil.Process]:
        """Return the processes that are still there, the demo itself included."""
        marked = {process for process in psutil.process_iter() if self._is_marked(process)}
        return [process for process in marked | self._seen if _is_alive(process)]

    def kill(self) -> None:
        """End all that is left."""
        for process in self.left_over():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        shutil.rmtree(self.temp, ignore_errors=True)

    def _is_marked(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self._mark
        except (psutil.Error, OSError):
            return False


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def start_demo(tmp_path: Path) -> Iterator[Callable[..., DemoProcess]]:
    """Start demos, and see that nothing of them is left."""
    demos: list[DemoProcess] = []

    def start(*arguments: str) -> DemoProcess:
        demos.append(DemoProcess(tmp_path, *arguments))
        return demos[-1]

    yield start
    for demo in demos:
        demo.kill()


@pytest.fixture
def taken_ports() -> Iterator[None]:
    """Occupy the servers' usual ports, as far as nobody else does."""
    with ExitStack() as stack:
        for port in WELL_KNOWN_PORTS:
            listener = stack.enter_context(socket.socket())
            with suppress(OSError):
                listener.bind(("127.0.0.1", port))
                listener.listen()
        yield


@pytest.mark.usefixtures("taken_ports")
def test_demo_kills_leaders_and_work_goes_on(start_demo: Callable[..., DemoProcess], tmp_path: Path) -> None:
    """And the figures are complete; also while the usual ports are taken."""
    summary_file = tmp_path / "summary.json"
    demo = start_demo("--seconds", "12", "--json", str(summary_file))

    assert demo.process.wait(150) == 0, demo.output
    assert "The leader changed, and work went on." in demo.output
    assert demo.left_over() == []
    assert not list(demo.temp.iterdir())

    summary = json.loads(summary_file.read_text())
    assert set(summary) == {"workers", "seconds", "failovers", "ticks", "notifications", "leader_only"}
    assert summary["workers"] == 3
    assert summary["seconds"] >= 12

    assert summary["failovers"]
    for failover in summary["failovers"]:
        assert set(failover) == {"fault", "lock_ms", "first_tick_ms"}
        assert failover["fault"] in {"kill -9", "TERM"}
        assert failover["lock_ms"] > 0
        assert failover["first_tick_ms"] > 0

    ticks = summary["ticks"]
    assert set(ticks) == {"expected", "published", "ran", "duplicates", "missed"}
    assert ticks["expected"] >= 4
    assert ticks["published"] > 0

    orders = summary["notifications"]
    assert set(orders) == {"sent", "handled", "duplicates", "lost"}
    assert orders["sent"] == orders["handled"] > 0
    assert (orders["duplicates"], orders["lost"]) == (0, 0)

    leader_only = summary["leader_only"]
    assert set(leader_only) == {"sent", "ran", "ran_off_leader"}
    assert 0 < leader_only["ran"] <= leader_only["sent"]
    assert leader_only["ran_off_leader"] == 0


def test_failovers_are_seen_on_the_dashboard_of_the_demo(start_demo: Callable[..., DemoProcess]) -> None:
    """Its address is printed; a TERM ends it, and leaves no process behind."""
    demo = start_demo("--seconds", "120", "--dashboard")
    eventually(lambda: "the dashboard: http://" in demo.output, timeout=60)
    address = demo.output.partition("the dashboard: ")[2].split()[0]

    def page() -> str:
        with urlopen(address) as response:
            text: str = response.read().decode()
            return text

    eventually(lambda: "@shop" in page(), timeout=60)
    eventually(lambda: "change lost" in page(), timeout=90)
    demo.remember_processes()
    demo.process.terminate()
    assert demo.process.wait(60) == 128 + signal.SIGTERM
    assert demo.left_over() == []


MOMENTS = ("starting", "started 3 workers", "the shop opens")
WAYS = {"Ctrl-C": signal.SIGINT, "TERM": signal.SIGTERM, "kill -9": signal.SIGKILL}
# Each moment and each way, and the worst case; the others take as long, and are alike.
USUAL = {("starting", "kill -9"), ("started 3 workers", "Ctrl-C"), ("the shop opens", "kill -9")}


@pytest.mark.parametrize(
    ("moment", "way"),
    [
        pytest.param(moment, way, marks=() if (moment, way) in USUAL else pytest.mark.long)
        for moment in MOMENTS
        for way in WAYS
    ],
)
def test_demo_that_is_ended_leaves_no_process_behind(
    start_demo: Callable[..., DemoProcess], moment: str, way: str
) -> None:
    """Whenever and however it is ended."""
    how = WAYS[way]
    demo = start_demo("--seconds", "60")
    eventually(lambda: moment in demo.output, timeout=90)
    demo.remember_processes()

    demo.process.send_signal(how)

    assert demo.process.wait(60) == (-how if how == signal.SIGKILL else 128 + how), demo.output
    eventually(lambda: not demo.left_over(), timeout=60)
    # A process that is killed cannot clean up behind itself.
    assert how == signal.SIGKILL or not list(demo.temp.iterdir())


@pytest.mark.parametrize("arguments", [("--seconds", "3"), ("--workers", "1"), ("--seconds", "soon")])
def test_arguments_that_cannot_work_are_refused(
    start_demo: Callable[..., DemoProcess], arguments: tuple[str, str]
) -> None:
    """At once, and they are named."""
    demo = start_demo(*arguments)
    assert demo.process.wait(60) == 2
    assert f"argument {arguments[0]}" in demo.output or f"error: {arguments[0]}" in demo.output


def fact(kind: str = "tick", **values: object) -> Fact:
    """Return a run of a task."""
    usual = {"key": "1", "node": "a", "run": uuid.uuid4().hex, "term": None, "sent_at": 0.0, "sent_by": 1, "at": 0.0}
    return Fact(**{"kind": kind, "leader": "a", **usual, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("slots", "runs", "closed_at", "expected"),
    [
        pytest.param([100, 102, 104], [100, 102, 104], 105.5, Ticks(3, 3, 3, 0, 0), id="one of each slot"),
        pytest.param([100, 104], [100, 104], 105.0, Ticks(3, 2, 2, 0, 1), id="a slot without a row is missed"),
        pytest.param([100, 102], [100, 100, 102], 103.0, Ticks(2, 2, 2, 1, 0), id="a second run is a duplicate"),
        pytest.param([100, 102], [100], 103.0, Ticks(2, 2, 1, 0, 0), id="a message that the broker loses does not run"),
        pytest.param(
            [100, 102, 104],
            [100, 102, 104],
            103.9,
            Ticks(2, 2, 2, 0, 0),
            id="what is due after closing time does not count",
        ),
        pytest.param([], [], 108.5, Ticks(0, 0, 0, 0, 0), id="without any there is nothing to count"),
    ],
)
def test_ticks_are_counted_by_the_ledger_and_by_runs(
    slots: list[float], runs: list[float], closed_at: float, expected: Ticks
) -> None:
    """Of each slot one."""
    rows = [SlotRow(at, "published") for at in slots]
    assert count_ticks(rows, [fact(key=str(at)) for at in runs], 2.0, closed_at) == expected


def test_slot_that_was_not_published_is_missed() -> None:
    """Whatever the reason."""
    rows = [SlotRow(100.0, "published"), SlotRow(102.0, "skipped")]
    assert count_ticks(rows, [fact(key="100.0")], 2.0, closed_at=102.5).missed == 1


def test_orders_that_were_never_handled_are_lost() -> None:
    """And a second run of one is a duplicate."""
    orders = count_notifications([fact("order", key=key) for key in ("1", "2", "2")], sent=4)
    assert (orders.handled, orders.duplicates, orders.lost) == (2, 1, 2)


def test_run_beside_the_lock_is_off_the_leader() -> None:
    """A run is off the leader when another node holds the lock at that moment, or none does."""
    runs = [fact("restock", key=str(number), leader=leader) for number, leader in enumerate(["a", "b", None])]
    assert count_leader_only(runs, sent=3).ran_off_leader == 2


def test_first_tick_is_that_of_another_process() -> None:
    """The first after the fault; what the old leader had sent proves nothing."""
    fault = Fault("kill -9", "a", pid=1, at=10.0, lock_ms=5.0)
    runs = [fact(sent_at=9.9, sent_by=1, at=10.1), fact(sent_at=11.0, sent_by=2, at=11.25)]
    assert judge(fault, runs).first_tick_ms == 1250.0
    assert judge(fault, runs[:1]).first_tick_ms is None
