"""The cases of Celery's that test what a bound scheduler replaces on purpose, with the reasons.

They have to fail: one that passes does not belong here. `test_bound.py` has much of what they say beyond that.
"""

from __future__ import annotations

from celery import VERSION

_HEAP = "it looks into Celery's heap, and the heap of a bound scheduler has another shape"
_AT_ONCE = "it expects 0 from a tick that sent an entry, and a bound scheduler's has sent all that are due by then"
_DRIFT = "Celery's tick wakes 10 ms early; a bound scheduler's wakes at the slot, and is never early for one"
_LOGGER = "it expects the error in Celery's logger, and it is in ours"
_RESULT = "it expects a result at once, and of a bound scheduler the publisher sends, in a thread of its own"
_SYNC = "its entry has no slot that is due, and the leader's beat syncs after a tick, not with each message"
_SLOT = "it expects the time of the tick as the last run, and what is counted from is the slot"
_PRODUCER = "it needs the scheduler's producer, and of a bound scheduler only the publisher has one, and a connection"
_FILE = "it looks at the file that is open, and a bound scheduler opens it for moments only"

REPLACED = {
    "test_Scheduler::test_apply_async_adds_beat_header": _RESULT,
    "test_Scheduler::test_apply_async_preserves_existing_headers": _RESULT,
    "test_Scheduler::test_should_sync_increments_sync_every_counter": _SYNC,
    "test_Scheduler::test_sync_task_counter_resets_on_do_sync": _SYNC,
    "test_Scheduler::test_tick_survives_entry_failing_in_populate_heap": _LOGGER,
    "test_Scheduler::test_pending_tick": _DRIFT,
    "test_Scheduler::test_pending_left_10_milliseconds_tick": _DRIFT,
    "test_Scheduler::test_ticks": _DRIFT,
    "test_Scheduler::test_tick_survives_entry_failing_when_due": _DRIFT,
    "test_Scheduler::test_ticks_microseconds": _HEAP,
    "test_Scheduler::test_ticks_schedule_change": _HEAP,
    "test_Scheduler::test_due_tick_returns_delay_when_heap_top_changed": _HEAP,
    "test_Scheduler::test_not_due_top_entry_is_rescheduled_behind_due_entry": _HEAP,
    "test_Scheduler::test_reheap_skipped_when_is_due_mutates_heap": _HEAP,
    "test_Scheduler::test_tick_uses_fresh_time_when_heap_top_changes": _HEAP,
    "test_Scheduler::test_tick_daily_relative_spring_forward": _AT_ONCE,
    "test_Scheduler::test_tick_solar_across_dst": _SLOT,
    "test_SchedulerShutdown::test_close_releases_connection_and_channel": _PRODUCER,
    "test_SchedulerShutdown::test_base_publishing_resources_recreated_after_close": _PRODUCER,
    "test_SchedulerShutdown::test_persistent_close_before_schedule_setup[True]": _PRODUCER,
    "test_SchedulerShutdown::test_close_releases_connection_after_producer_creation_fails": _PRODUCER,
    "test_SchedulerShutdown::test_close_releases_resources_when_sync_fails": _PRODUCER,
    "test_SchedulerShutdown::test_close_ignores_broker_errors": _PRODUCER,
    "test_SchedulerShutdown::test_close_prioritizes_sync_over_unexpected_release_error": _PRODUCER,
    "test_SchedulerShutdown::test_persistent_close_releases_connection_when_store_close_fails": _PRODUCER,
    "test_PersistentScheduler::test_setup_schedule": _FILE,
    "test_Service::test_start": _FILE,
}
if VERSION[:2] >= (5, 7):
    # Before, Celery did not wake early for these.
    REPLACED["test_Scheduler::test_schedule_no_remain"] = _DRIFT
