"""What is remembered in Postgres: the schema and its migrations, terms, and the slots of the schedule."""

from celery_pgleader.store.ledger import Claimed, EntryRecord, Ledger, Outcome, SlotRow, Superseded
from celery_pgleader.store.mailbox import Letter, Mailbox
from celery_pgleader.store.schema import Schema
from celery_pgleader.store.terms import LEDGER_TERMS

__all__ = [
    "LEDGER_TERMS",
    "Claimed",
    "EntryRecord",
    "Ledger",
    "Letter",
    "Mailbox",
    "Outcome",
    "Schema",
    "SlotRow",
    "Superseded",
]
