"""The servers that the example app and these tests start for themselves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import kombu
import psutil
import psycopg
import pytest
import redis

from example_app.servers import EmbeddedPostgres, EmbeddedValkey, Server, ServerFailed, free_port
from tests.support.eventually import eventually
from tests.support.rabbitmq import RabbitMQ
from tests.support.standby import ask

REPOSITORY = Path(__file__).parents[2]

# Starts one of each kind, says which processes there are, and then waits for its end.
PARENT = """
import signal
import sys
from pathlib import Path

import psutil

from example_app.servers import EmbeddedPostgres, EmbeddedValkey

# What a shell runs in the background is born without an ear for interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
with EmbeddedPostgres(Path(sys.argv[1])) as postgres, EmbeddedValkey() as valkey:
    print(postgres.folder, valkey.folder, *(p.pid for p in psutil.Process().children(recursive=True)), flush=True)
    sys.stdin.read()
"""


def change(server: EmbeddedPostgres, *statements: str) -> None:
    with psycopg.connect(server.url()) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@pytest.fixture
def parent(bin_dir: Path) -> Iterator[tuple[subprocess.Popen[str], list[Path], list[psutil.Process]]]:
    """Give a process with servers of its own, their folders, and their processes."""
    command = [sys.executable, "-c", PARENT, str(bin_dir)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            yield process, [Path(word) for word in words[:2]], [psutil.Process(int(word)) for word in words[2:]]
        finally:
            process.kill()


def test_postgres_keeps_what_was_written_across_a_restart(own_postgres: EmbeddedPostgres) -> None:
    """On the same port, though a client is connected."""
    url = own_postgres.url()
    change(own_postgres, "create table kept (id int)")
    with psycopg.connect(url) as connection:
        own_postgres.restart()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    assert own_postgres.url() == url
    assert ask(own_postgres, "select count(*) from kept") == "0"


def test_postgres_keeps_what_was_committed_across_a_crash(own_postgres: EmbeddedPostgres) -> None:
    """As often as one likes; nobody is left of those who were there before."""
    change(own_postgres, "create table kept (id int)")
    for number in range(1, 4):
        assert own_postgres.pid is not None
        before = psutil.Process(own_postgres.pid).children()
        with psycopg.connect(own_postgres.url()) as bystander:
            change(own_postgres, "insert into kept select 1")
            own_postgres.kill()
            with pytest.raises(psycopg.OperationalError):
                bystander.execute("select 1")
        eventually(lambda before=before: not alive(before))  # type: ignore[misc]  # of this round
        own_postgres.start()
        assert ask(own_postgres, "select count(*) from kept") == str(number)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_postgres_leaves_no_shared_memory(own_postgres: EmbeddedPostgres) -> None:
    """Neither of the kind that has a number, nor of the kind that has a name."""
    segment = (own_postgres.folder / "data" / "postmaster.pid").read_text().splitlines()[6].split()[1]
    assert segment in shared_segments()
    assert ask(own_postgres, "show dynamic_shared_memory_type") == "mmap", "files in its folder"
    own_postgres.kill()
    assert segment not in shared_segments()


def shared_segments() -> list[str]:
    """Return the numbers of all segments of shared memory."""
    return [line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]


def test_postgres_listens_on_the_loopback_address_only(postgres: EmbeddedPostgres) -> None:
    """And on no socket in the file system."""
    assert ask(postgres, "show listen_addresses") == "127.0.0.1"
    assert ask(postgres, "show unix_socket_directories") == ""


def test_postgres_takes_settings(bin_dir: Path) -> None:
    """Also those that we set."""
    with EmbeddedPostgres(bin_dir, {"max_connections": "7", "fsync": "on"}) as server:
        assert ask(server, "show max_connections") == "7"
        assert ask(server, "show fsync") == "on"


def test_server_that_cannot_start_says_why(bin_dir: Path) -> None:
    """In the words of its log, and leaves nothing behind."""
    server = EmbeddedPostgres(bin_dir, {"max_connections": "none"})
    with pytest.raises(ServerFailed, match="max_connections"), server:
        pass
    assert server.pid is None
    assert not server.folder.exists()


def test_valkey_keeps_what_was_written_across_a_restart(own_valkey: EmbeddedValkey) -> None:
    """As a broker should, whose queues are not empty."""
    with redis.Redis.from_url(own_valkey.url) as client:
        client.set("kept", "yes")
    own_valkey.restart()
    with redis.Redis.from_url(own_valkey.url) as client:
        assert client.get("kept") == b"yes"


def test_rabbitmq_keeps_what_was_written_across_a_restart(shared_rabbitmq: RabbitMQ) -> None:
    """On the same port."""
    url = shared_rabbitmq.url
    with kombu.Connection(url) as connection, connection.SimpleQueue("kept") as queue:
        queue.put("yes")
    shared_rabbitmq.restart()
    assert shared_rabbitmq.url == url
    with kombu.Connection(url) as connection, connection.SimpleQueue("kept") as queue:
        message = queue.get(timeout=10)
        message.ack()
        assert message.payload == "yes"


@pytest.mark.parametrize("kind", [EmbeddedPostgres, EmbeddedValkey])
def test_stopped_server_can_be_stopped_again(kind: type[Server]) -> None:
    """Before its start, and twice after it."""
    with kind() as server:
        server.stop()
        server.stop()
        server.kill()
    assert not server.folder.exists()


def test_hanging_server_is_stopped(own_valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has had its time."""
    monkeypatch.setattr("example_app.servers.STOP_TIMEOUT", 0.2)
    assert own_valkey.pid is not None
    process = psutil.Process(own_valkey.pid)
    process.suspend()
    own_valkey.stop()
    assert not process.is_running()


def test_ports_are_not_those_of_outgoing_connections() -> None:
    """Or a client of theirs could take one while a server is restarted."""
    assert 20000 <= free_port() < 32000


Parent = tuple[subprocess.Popen[str], list[Path], list[psutil.Process]]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's end")
def test_servers_die_with_a_killed_parent(parent: Parent) -> None:
    """With `kill -9`, which it cannot see coming."""
    process, folders, processes = parent
    assert len(processes) > 2
    process.kill()
    eventually(lambda: not alive(processes))
    for folder in folders:
        subprocess.run(["rm", "-r", folder], check=True)


def test_servers_end_in_good_order_with_their_parent(parent: Parent) -> None:
    """Nothing stays of them, in memory or on disk."""
    process, folders, processes = parent
    process.communicate()
    assert process.returncode == 0
    assert not alive(processes)
    assert not [folder for folder in folders if folder.exists()]


def test_interrupted_parent_stops_its_servers(parent: Parent) -> None:
    """It stops its servers then."""
    process, folders, processes = parent
    process.send_signal(signal.SIGINT)
    eventually(lambda: process.poll() is not None)
    assert not alive(processes)
    assert not [folder for folder in folders if folder.exists()]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_postgres_does_not_run_as_root(postgres: EmbeddedPostgres) -> None:
    """Since it refuses to run as root."""
    assert postgres.pid is not None
    assert psutil.Process(postgres.pid).uids().real != 0


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return those that still run."""
    return [process for process in processes if runs(process)]


def runs(process: psutil.Process) -> bool:
    """Tell whether a process runs; it may end between two looks at it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
