"""The tables of the ledger, to be read; the schema itself is made by the migrations in `celery_pgleader/store`."""

from __future__ import annotations

from typing import Any

from django.db import models

from celery_pgleader.django.alias import ledger_alias


class LedgerManager(models.Manager):
    """Reads the database that holds the ledger."""

    def get_queryset(self) -> Any:
        """Return all rows."""
        return super().get_queryset().using(ledger_alias())


class Row(models.Model):
    """A row of any table of the ledger."""

    objects = LedgerManager()

    class Meta:
        """Not in a table of its own."""

        abstract = True


class Unmanaged:
    """What holds for all tables: they are not Django's, and are only looked at."""

    managed = False
    default_permissions = ("view",)


class RowOfSeveralKeys(Row):
    """A row of a table whose primary key has several columns; Django wants one that tells rows apart."""

    row = models.TextField(primary_key=True, db_column="ctid")

    class Meta:
        """Not in a table of its own."""

        abstract = True


class Election(Row):
    """An election, its term, and what operators have ordered."""

    election = models.TextField(primary_key=True)
    term = models.BigIntegerField()
    node = models.TextField()
    gained_at = models.DateTimeField()
    paused_at = models.DateTimeField(null=True)
    held_at = models.DateTimeField(null=True)
    cordoned = models.TextField()

    class Meta(Unmanaged):
        """The table."""

        db_table = '"pgleader"."elections"'
        ordering = ("election",)

    def __str__(self) -> str:
        """Return its name."""
        return str(self.election)


class Term(RowOfSeveralKeys):
    """Who led, from when to when."""

    election = models.TextField()
    term = models.BigIntegerField()
    node = models.TextField()
    backend_pid = models.IntegerField()
    gained_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    reason = models.TextField(null=True)

    class Meta(Unmanaged):
        """The table."""

        db_table = '"pgleader"."terms"'
        ordering = ("election", "-term")

    def __str__(self) -> str:
        """Return its number, and whose it is."""
        return f"term {self.term} of {self.election}"


class Entry(RowOfSeveralKeys):
    """An entry of the schedule, and up to when its slots are accounted for."""

    election = models.TextField()
    entry = models.TextField()
    task = models.TextField()
    schedule = models.TextField()
    last_slot = models.DateTimeField(null=True)
    next_slot = models.DateTimeField(null=True)
    last_run_at = models.DateTimeField(null=True)
    run_count = models.BigIntegerField()
    paused_at = models.DateTimeField(null=True)
    retired_at = models.DateTimeField(null=True)

    class Meta(Unmanaged):
        """The table."""

        db_table = '"pgleader"."entries"'
        ordering = ("election", "entry")
        verbose_name_plural = "entries"

    def __str__(self) -> str:
        """Return its name."""
        return str(self.entry)


class Slot(RowOfSeveralKeys):
    """What became of a slot, or of several in a row."""

    election = models.TextField()
    entry = models.TextField()
    slot = models.DateTimeField()
    through = models.DateTimeField()
    slots = models.BigIntegerField()
    state = models.TextField(choices=[(state, state) for state in ("claimed", "published", "skipped", "expired")])
    reason = models.TextField(null=True)
    term = models.BigIntegerField()
    task_id = models.UUIDField(null=True)
    claimed_at = models.DateTimeField()
    settled_at = models.DateTimeField(null=True)

    class Meta(Unmanaged):
        """The table."""

        db_table = '"pgleader"."slots"'
        ordering = ("-slot", "election", "entry")

    def __str__(self) -> str:
        """Return whose it is, and when it was due."""
        return f"{self.entry} of {self.slot}"


class Letter(Row):
    """A durable notification that is still there."""

    id = models.BigIntegerField(primary_key=True)
    channel = models.TextField()
    key = models.TextField(null=True)
    payload = models.JSONField()
    sent_at = models.DateTimeField()
    attempts = models.IntegerField()
    error = models.TextField(null=True)

    class Meta:
        """Not in a table of its own."""

        abstract = True

    def __str__(self) -> str:
        """Return its number, and where it was sent."""
        return f"{self.id} on {self.channel}"


class Notification(Letter):
    """One that waits for its dispatch."""

    class Meta(Unmanaged):
        """The table."""

        db_table = '"pgleader"."notifications"'
        ordering = ("id",)


class DeadLetter(Letter):
    """One that could not be dispatched."""

    died_at = models.DateTimeField()

    class Meta(Unmanaged):
        """The table."""

        db_table = '"pgleader"."dead_letters"'
        ordering = ("-died_at",)
