"""The relay's questions, however much waits."""

from __future__ import annotations

import psycopg

from celery_pgleader.store import Mailbox
from celery_pgleader.store.mailbox import PREPARE_AFTER
from tests.integration.test_wake_ups import mailbox_of

BACKLOG = 20_000
MANY = """
insert into pgleader.notifications (channel, key, payload)
select 'orders', (g %% 100)::text, '1' from generate_series(1, %s) g
"""
SCANS = "select seq_scan from pg_stat_user_tables where relname = 'notifications'"


def ask_all(mailbox: Mailbox) -> None:
    """Ask what a relay asks."""
    letters, _ = mailbox.waiting(limit=50)
    mailbox.is_any_waiting()
    mailbox.waiting(after=mailbox.newest() - 100, alone=True, limit=50)
    mailbox.dispatched(letters)


def test_relay_does_not_scan_the_backlog(database: str) -> None:
    """Though all was planned for the empty table as which it was analysed."""
    with psycopg.connect(database, autocommit=True) as connection, mailbox_of(database, "orders") as mailbox:

        def scans() -> object:
            mailbox._session.execute("select pg_stat_force_next_flush()")  # noqa: SLF001 - what it counts is its own
            return connection.execute(SCANS).fetchone()

        connection.execute("alter table pgleader.notifications set (autovacuum_enabled = off)")
        connection.execute("vacuum analyze pgleader.notifications")
        for _ in range(PREPARE_AFTER + 1):
            connection.execute("select pgleader.notify('orders', '1', 'a')")
            ask_all(mailbox)
        connection.execute(MANY, [BACKLOG])
        before = scans()
        for _ in range(3):
            ask_all(mailbox)
        assert scans() == before
