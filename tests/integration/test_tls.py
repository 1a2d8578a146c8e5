"""What libpq does for a connection, it does for ours: TLS, the password file and the service file."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest

from celery_pgleader.config import LIBPQ_ENVIRONMENT, Config
from celery_pgleader.election import Elector, LockSession
from celery_pgleader.election.state import Phase
from celery_pgleader.store import LEDGER_TERMS
from example_app.servers import EmbeddedPostgres
from tests.fixtures.servers import missing
from tests.support.eventually import eventually

PATIENCE = 60.0
PASSWORD = "s3cret:passw0rd"
HBA = """\
host    all postgres 127.0.0.1/32 trust
hostssl all shop     127.0.0.1/32 scram-sha-256
"""
ENCRYPTED = """
select bool_and(ssl) from pg_stat_ssl join pg_stat_activity using (pid) where application_name like 'pgleader %%'
"""


@dataclass(frozen=True)
class Secured:
    """A server that lets the role `shop` in only with TLS and a password, and what clients need."""

    server: EmbeddedPostgres
    authority: Path
    folder: Path

    def url(self, **parameters: str) -> str:
        """Return a URL without the password, that checks who the server is."""
        wanted = {"sslmode": "verify-full", "sslrootcert": str(self.authority), **parameters}
        return psycopg.conninfo.make_conninfo(self.server.url("postgres", "shop"), **wanted)

    def write(self, name: str, text: str) -> Path:
        """Write a file that only its owner may read, as libpq wants it."""
        file = self.folder / name
        file.write_text(text)
        file.chmod(0o600)
        return file

    def password_file(self) -> Path:
        """Write a password file."""
        escaped = PASSWORD.replace(":", "\\:")
        return self.write("pgpass", f"127.0.0.1:{self.server.port}:*:shop:{escaped}\n")


def tls_programs(given: Path | None) -> Path:
    """Return the programs of a Postgres that speaks TLS, as the wheel's does not."""
    candidates = [given] if given else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    for folder in reversed(candidates):
        linked = subprocess.run(["ldd", folder / "postgres"], capture_output=True, text=True, check=False).stdout
        if "libssl" in linked:
            return folder
    return missing("a Postgres with TLS")


@pytest.fixture(scope="module")
def secured(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Give such a server."""
    programs = tls_programs(pytestconfig.getoption("--pg-bin"))
    folder = tmp_path_factory.mktemp("tls")
    with EmbeddedPostgres(programs) as server:
        data = server.folder / "data"
        certificate, key = data / "server.crt", data / "server.key"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=pgleader"]
        command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
        subprocess.run(command, check=True, capture_output=True)
        owner = data.stat()
        for file in (certificate, key):
            file.chmod(0o600)
            # The server runs as whom its folder belongs to.
            os.chown(file, owner.st_uid, owner.st_gid)
        authority = folder / "authority.crt"
        authority.write_text(certificate.read_text())
        with psycopg.connect(server.url(), autocommit=True) as root:
            root.execute("alter system set ssl = on")
            root.execute(psycopg.sql.SQL("create role shop login password {}").format(PASSWORD))
            root.execute("grant create on database postgres to shop")
        (data / "pg_hba.conf").write_text(HBA)
        server.restart()
        yield Secured(server, authority, folder)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep files and variables of whoever runs the tests out of them."""
    for name in (*LIBPQ_ENVIRONMENT, "PGPASSFILE", "PGSERVICEFILE", "PGPASSWORD", "PGLEADER_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def assert_elects(config: Config, server: EmbeddedPostgres) -> None:
    """Check that one of two leads, that all their sessions are encrypted, and that waiting can be cut short."""
    electors = [Elector(config, node, open_session=lambda c, n: LockSession.open(c, n, LEDGER_TERMS)) for node in "ab"]
    try:
        for elector in electors:
            elector.start()
        eventually(lambda: [e for e in electors if e.leadership.trusted()], timeout=PATIENCE)
        eventually(lambda: [e for e in electors if e.phase is Phase.SUCCESSOR], timeout=PATIENCE)
        with psycopg.connect(server.url()) as root:
            assert root.execute(ENCRYPTED).fetchone() == (True,)
    finally:
        assert all(elector.stop(PATIENCE) for elector in electors)


def test_elector_uses_tls_and_a_password_file(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    """The URL has no password in it, and the server is who it says it is."""
    monkeypatch.setenv("PGPASSFILE", str(secured.password_file()))
    assert_elects(Config(database_url=secured.url()), secured.server)


def test_elector_uses_a_service_file(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    """No URL at all; also with a URL that names the service."""
    service = secured.write(
        "services",
        f"[shop]\nhost=127.0.0.1\nport={secured.server.port}\nuser=shop\ndbname=postgres\n"
        f"sslmode=verify-full\nsslrootcert={secured.authority}\npassfile={secured.password_file()}\n",
    )
    monkeypatch.setenv("PGSERVICEFILE", str(service))
    assert_elects(Config(database_url="service=shop", election="named"), secured.server)
    monkeypatch.setenv("PGSERVICE", "shop")
    assert_elects(Config.from_app(SimpleNamespace(main="shop", conf={})), secured.server)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"password": "wrong-s3cret"}, "password authentication failed"),
        ({"sslmode": "disable", "password": PASSWORD}, "no encryption"),
        ({"host": "localhost", "hostaddr": "127.0.0.1", "password": PASSWORD}, 'does not match host name "localhost"'),
        ({"sslrootcert": "system", "password": PASSWORD}, "certificate verify failed"),
    ],
    ids=["password", "no TLS", "other host", "other authority"],
)
def test_failure_of_libpq_is_one_line(
    parameters: dict[str, str], reason: str, secured: Secured, caplog: pytest.LogCaptureFixture
) -> None:
    """With its reason, and without the password."""
    elector = Elector(Config(database_url=secured.url(**parameters), ttl=1), "node")
    elector.start()
    try:
        eventually(lambda: caplog.records, timeout=PATIENCE)
    finally:
        elector.stop(PATIENCE)
    message = caplog.records[0].getMessage()
    assert reason in message
    assert "\n" not in message
    assert "s3cret" not in message
