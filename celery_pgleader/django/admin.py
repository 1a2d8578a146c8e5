"""The ledger in the admin, to be read only."""

from __future__ import annotations

from typing import Any

from django.contrib import admin

from celery_pgleader.django import models


class ReadOnly(admin.ModelAdmin):
    """A table that nobody changes by hand: what the ledger says has to be true."""

    # Counting the rows that a filter leaves out takes longer than it tells.
    show_full_result_count = False

    def has_add_permission(self, *_: Any) -> bool:
        """Say no."""
        return False

    def has_change_permission(self, *_: Any) -> bool:
        """Say no."""
        return False

    def has_delete_permission(self, *_: Any) -> bool:
        """Say no."""
        return False


class RowsOnly(ReadOnly):
    """A table whose rows are seen whole in the list; they have no page, since nothing but where they lie names them."""

    list_display_links = None


@admin.register(models.Election)
class ElectionAdmin(ReadOnly):
    """Who leads which election."""

    list_display = ("election", "term", "node", "gained_at", "paused_at", "held_at", "cordoned")


@admin.register(models.Term)
class TermAdmin(RowsOnly):
    """Who led when."""

    list_display = ("election", "term", "node", "gained_at", "ended_at", "reason")
    list_filter = ("election",)
    search_fields = ("node", "reason")


@admin.register(models.Entry)
class EntryAdmin(RowsOnly):
    """The schedule."""

    list_display = (
        "election",
        "entry",
        "task",
        "schedule",
        "last_slot",
        "next_slot",
        "last_run_at",
        "run_count",
        "paused_at",
        "retired_at",
    )
    list_filter = ("election",)
    search_fields = ("entry", "task")


@admin.register(models.Slot)
class SlotAdmin(RowsOnly):
    """What became of the schedule."""

    list_display = ("election", "entry", "slot", "slots", "state", "reason", "term", "task_id", "settled_at")
    list_filter = ("state",)
    search_fields = ("entry", "reason")


@admin.register(models.Notification)
class NotificationAdmin(ReadOnly):
    """What waits for its dispatch."""

    list_display = ("id", "channel", "key", "sent_at", "attempts", "error")
    search_fields = ("channel", "key")


@admin.register(models.DeadLetter)
class DeadLetterAdmin(ReadOnly):
    """What could not be dispatched."""

    list_display = ("id", "channel", "key", "sent_at", "died_at", "error")
    search_fields = ("channel", "key", "error")
