"""The errors that celery-pgleader raises.

PgLeaderError
├── ConfigurationError    a setting, or two settings together, that cannot work
├── ServerUnsuitable      a Postgres server on which no election can be held
├── NotificationError     a notification that cannot be sent as it was given
└── LeadershipLost        a leader-only task runs on a node that does not lead any more
"""

from __future__ import annotations


class PgLeaderError(Exception):
    """Something in celery-pgleader went wrong."""

    def __str__(self) -> str:
        """Return the message given, or the class's own description."""
        return super().__str__() or (type(self).__doc__ or "").strip()


class ConfigurationError(PgLeaderError, ValueError):
    """A setting, or two settings together, cannot work."""


class ServerUnsuitable(PgLeaderError):
    """This Postgres server cannot hold an election."""


class NotificationError(PgLeaderError, ValueError):
    """The notification cannot be sent as it was given."""


class LeadershipLost(PgLeaderError):
    """This node does not lead the term any more under which the task was begun."""


LONGEST_VALUE = 200


def refused(setting: str, value: object, rule: str) -> ConfigurationError:
    """Return the error that says, in one line, which setting has which value, and the rule that it breaks."""
    return ConfigurationError(f"{setting} = {shown(value)}: {rule}")


def shown(value: object) -> str:
    """Return a value as it is written in Python, in one line, cut if it is long."""
    text = " ".join(repr(value).splitlines())
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."
