"""How instants and durations are said."""

from __future__ import annotations

from datetime import datetime, tzinfo


def duration(seconds: float) -> str:
    """Return a duration in words."""
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.1f} s"
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if not days else f"{days} d {hours % 24} h"


def skew(seconds: float) -> str:
    """Return by how much a clock is ahead, or behind."""
    # What is rounded to nothing is no less than nothing.
    return f"{round(seconds, 1) + 0.0:+.1f} s"


def moment(at: datetime, zone: tzinfo) -> str:
    """Return an instant on the clock of a time zone."""
    return at.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S")


def time_of(at: datetime, now: datetime, zone: tzinfo) -> str:
    """Return an instant on the clock of a time zone, without the date if that is today's."""
    local = at.astimezone(zone)
    return local.strftime("%H:%M:%S" if local.date() == now.astimezone(zone).date() else "%m-%d %H:%M")


def first_line(error: Exception) -> str:
    """Return what an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
