"""Times as operators write them, on the clock of the app's time zone."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, tzinfo

import click

FORMATS = ("%H:%M", "%H:%M:%S")
WITH_SECONDS = re.compile(r"\d\d:\d\d:\d\d")


def read_time(text: str, now: datetime, zone: tzinfo) -> tuple[datetime, timedelta]:
    """Return an instant, and how much of the time after it is meant as well.

    Args:
        text: such as `10:00`, `10:00:05`, `2026-11-24 10:00` or `2026-11-24T10:00:05+01:00`; a time of day is today's.
        now: the present.
        zone: of times that name none.

    Raises:
        click.BadParameter: it cannot be read.

    """
    exact = timedelta(seconds=1) if WITH_SECONDS.search(text) else timedelta(minutes=1)
    today = now.astimezone(zone)
    for form in FORMATS:
        try:
            clock = datetime.strptime(text, form)  # noqa: DTZ007 - the date and the zone are today's
        except ValueError:
            continue
        return today.replace(hour=clock.hour, minute=clock.minute, second=clock.second, microsecond=0), exact
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no time such as 10:00, 10:00:05, 2026-11-24 10:00 or 2026-11-24T10:00:05+01:00"
        ) from None
    return given if given.tzinfo else given.replace(tzinfo=zone), exact
