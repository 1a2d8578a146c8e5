"""What the leader does about slots that are late, and about runs that take longer than their period."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any

from celery_pgleader.errors import ConfigurationError, refused

# How late a slot may be, with `misfire = skip`, before it counts as missed: longer than any failover takes.
SKIP_GRACE = 10.0
# So that the date before which a slot is too late exists.
MAX_GRACE = 3_652 * 86_400.0


class Misfire(Enum):
    """What becomes of slots that were due while nobody led."""

    COALESCE = "coalesce"
    ALL = "all"
    SKIP = "skip"


class Overlap(Enum):
    """What becomes of a slot while the run of an earlier one is still going on."""

    ALLOW = "allow"
    SKIP = "skip"
    WAIT = "wait"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How the slots of an entry are treated.

    Attributes:
        misfire: of several slots that are due at once, `coalesce` runs the newest, `all` each, oldest first, and
            `skip` the newest if it is no later than `misfire_grace`. Default `coalesce`, as Celery does.
        misfire_grace: seconds after which a slot is too late to be run, and expires. Default: none; with
            `skip` 10 seconds.
        overlap: while a run is going on, `allow` starts another, `skip` leaves the slot out, `wait` runs it
            afterwards. Default `allow`.
        deduplicate: do not run the same slot again when its message is delivered again. Default `False`.

    """

    misfire: Misfire = Misfire.COALESCE
    misfire_grace: float | None = None
    overlap: Overlap = Overlap.ALLOW
    deduplicate: bool = False

    @property
    def grace(self) -> float:
        """Seconds after which a slot is too late to be run."""
        if self.misfire_grace is not None:
            return self.misfire_grace
        return SKIP_GRACE if self.misfire is Misfire.SKIP else math.inf


FIELDS = [field.name for field in dataclasses.fields(Policy)]
DEFAULT = Policy()


def policy_of(policies: Mapping[str, Policy], entry: str) -> Policy:
    """Return the policy of an entry: the one under its very name, or else the first whose pattern matches."""
    if entry in policies:
        return policies[entry]
    return next((policy for pattern, policy in policies.items() if fnmatchcase(entry, pattern)), DEFAULT)


def read_policies(setting: str, value: object) -> Mapping[str, Policy]:
    """Return policies by the name or pattern of the entries that they are for.

    Raises:
        ConfigurationError: something in it cannot work; the message names the setting, the value and the rule.

    """
    if not isinstance(value, Mapping):
        raise refused(setting, value, 'must be a dict such as {"reports.*": {"misfire": "all"}}')
    policies = {}
    for pattern, given in value.items():
        if not isinstance(pattern, str) or not pattern:
            raise refused(setting, pattern, "each key must be the name of an entry, or a pattern such as reports.*")
        policies[pattern] = given if isinstance(given, Policy) else _read_policy(f"{setting}[{pattern!r}]", given)
    return policies


def _read_policy(setting: str, value: object) -> Policy:
    if not isinstance(value, Mapping):
        raise refused(setting, value, 'must be a dict such as {"misfire": "all", "misfire_grace": 3600}')
    read: dict[str, Any] = {}
    for name, given in value.items():
        where = f"{setting}[{name!r}]"
        if name == "misfire":
            read[name] = _read_choice(where, given, Misfire)
        elif name == "overlap":
            read[name] = _read_choice(where, given, Overlap)
        elif name == "misfire_grace":
            read[name] = _read_grace(where, given)
        elif name == "deduplicate":
            if not isinstance(given, bool):
                raise refused(where, given, "must be True or False")
            read[name] = given
        else:
            near = difflib.get_close_matches(str(name), FIELDS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigurationError(f"{where}: there is no such policy{hint}")
    return Policy(**read)


def _read_choice(setting: str, value: object, choices: type[Enum]) -> Enum:
    try:
        return choices(value)
    except ValueError:
        raise refused(setting, value, f"must be one of {', '.join(str(choice.value) for choice in choices)}") from None


def _read_grace(setting: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_GRACE:
        raise refused(setting, value, f"must be a number of seconds above 0, and at most {MAX_GRACE:.0f}")
    return float(value)
