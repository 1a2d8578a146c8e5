"""One frozen, validated `Config`, from the app's settings, the environment and the command line.

Every setting is named `pgleader_<field>` in Celery's configuration, `PGLEADER_<FIELD>` in the environment
and `--pgleader-<field>` on the command line. The later source wins.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from celery_pgleader.channels import Route, read_channels
from celery_pgleader.errors import ConfigurationError, refused
from celery_pgleader.policies import Policy, read_policies

PREFIX = "pgleader_"

MAX_ELECTION_CHARACTERS = 100
MIN_TTL, MAX_TTL = 1.0, 86_400.0
MIN_INTERVAL = 0.05
MAX_PRIORITY = 1000
MAX_VERSION_CHARACTERS = 100
MIN_RETENTION, MAX_RETENTION = 60.0, 3_652 * 86_400.0
INT64 = range(-(2**63), 2**63)

# Any of these in the environment says where libpq should connect without a URL.
LIBPQ_ENVIRONMENT = ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that an election needs to know, checked.

    Attributes:
        database_url: libpq URL or keyword string of the database that holds the election. Several hosts are
            allowed. Kept out of `repr`, since it may hold a password.
        election: name of the election. Workers of one election compete, others do not.
        lock: an explicit `bigint` lock key in place of the one derived from `election`, for fleets shared with
            programs that take `pg_try_advisory_lock(bigint)`. Default: none.
        ttl: seconds without a renewal after which the server ends a leader's session. Default 5.
        renew_interval: seconds between a leader's renewals. Default: a fifth of `ttl`.
        trust_margin: seconds before the end of `ttl` at which a leader stops trusting itself. Default: a tenth
            of `ttl`.
        poll_interval: seconds between a follower's attempts to become a successor. Default 10.
        channels: which tasks get the notifications of which channel. Default: none.
        schedule: what is done about late slots and long runs, by the name or pattern of schedule entries. Default:
            as Celery does.
        retention: seconds for which the ledger keeps slots and terms. Default 604800, a week.
        drain_timeout: seconds for which a leader that shuts down stays for its leader-only tasks to end. Default 300.
        priority: of two nodes the one with the higher priority is preferred as the leader; 0 never leads. Default 1.
        app_version: which version of the app this node runs, for operators to compare. Default: none.
        django_database: alias of the Django database that is used if there is no `database_url`. Default: `default`.

    Raises:
        ConfigurationError: a value, or a relation between two, that cannot work; the message names the
            setting, the value and the rule.

    """

    database_url: str = field(repr=False)
    election: str = "default"
    lock: int | None = None
    ttl: float = 5.0
    renew_interval: float = 0.0
    trust_margin: float = 0.0
    poll_interval: float = 10.0
    channels: Mapping[str, tuple[Route, ...]] = field(default_factory=dict)
    schedule: Mapping[str, Policy] = field(default_factory=dict)
    retention: float = 604_800.0
    drain_timeout: float = 300.0
    priority: int = 1
    app_version: str = ""
    django_database: str = "default"

    def __post_init__(self) -> None:
        """Read each value into its type, then check the values against each other."""
        for name, read in READERS.items():
            object.__setattr__(self, name, read(PREFIX + name, getattr(self, name)))
        # Zero stands for "a share of the ttl", which is only known here.
        if not self.renew_interval:
            object.__setattr__(self, "renew_interval", self.ttl / 5)
        if not self.trust_margin:
            object.__setattr__(self, "trust_margin", self.ttl / 10)
        self._check_relations()

    @property
    def trust_window(self) -> float:
        """Seconds for which a leader trusts itself, from the start of a successful renewal."""
        return self.ttl - self.trust_margin

    @property
    def database(self) -> str:
        """Where the database is, in words and without any secret."""
        from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415 - psycopg only where it is used

        parts = conninfo_to_dict(self.database_url)
        hosts = parts.get("host") or parts.get("hostaddr") or "the default host"
        return f"{parts.get('dbname', 'the default database')} on {hosts}"

    def _check_relations(self) -> None:
        if self.trust_margin >= self.ttl:
            raise refused("pgleader_trust_margin", self.trust_margin, f"must be below pgleader_ttl ({self.ttl:g})")
        if self.renew_interval >= self.trust_window:
            rule = (
                f"must be below pgleader_ttl minus pgleader_trust_margin ({self.trust_window:g}),"
                " or a leader would lose trust between two renewals"
            )
            raise refused("pgleader_renew_interval", self.renew_interval, rule)

    @classmethod
    def from_app(cls, app: Any, options: Mapping[str, Any] | None = None) -> Config:
        """Return the configuration of a Celery app.

        Args:
            app: the app, whose `conf` holds the `pgleader_*` settings.
            options: values given on the command line, by field name; `None` stands for "not given".

        Raises:
            ConfigurationError: a bad value, an unknown setting, or no database to be found.

        """
        values = {"election": _default_election(app), **_settings(app.conf), **_environment(os.environ)}
        values |= {name: value for name, value in (options or {}).items() if value is not None}
        if not values.get("database_url"):
            values["database_url"] = _django_database_url(values.get("django_database"))
        return cls(**values)


def election_of(app: Any) -> str:
    """Return the name of an app's election, also where no database is configured.

    Raises:
        ConfigurationError: the name cannot be one.

    """
    name = os.environ.get("PGLEADER_ELECTION") or app.conf.get("pgleader_election") or _default_election(app)
    return _read_election("pgleader_election", name)


def _default_election(app: Any) -> str:
    # So that two apps which share a database do not compete.
    return app.main or "celery"


def _settings(conf: Mapping[str, Any]) -> dict[str, Any]:
    known = {item.name for item in dataclasses.fields(Config)}
    for key in conf:
        # Under a namespace, such as Django's, keys are listed as CELERY_PGLEADER_..., and looked up without it.
        _, prefix, name = key.lower().rpartition(PREFIX)
        if prefix and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
            raise ConfigurationError(f"{key}: there is no such setting{hint}")
    return {name: value for name in known if (value := conf.get(PREFIX + name)) is not None}


def _environment(environ: Mapping[str, str]) -> dict[str, Any]:
    names = (item.name for item in dataclasses.fields(Config) if item.name not in {"channels", "schedule"})
    return {name: value for name in names if (value := environ.get(f"PGLEADER_{name.upper()}"))}


def _django_database_url(alias: str | None) -> str:
    """Return the conninfo of a database of Django's, by default the default one; nothing where there is none.

    Raises:
        ConfigurationError: there is no database of that alias, or it is not Postgres.

    """
    conf: Any = sys.modules.get("django.conf")
    if conf is None or not (conf.settings.configured or os.environ.get("DJANGO_SETTINGS_MODULE")):
        return ""
    from django.db import DEFAULT_DB_ALIAS, connections  # noqa: PLC0415 - Django is optional
    from psycopg import ProgrammingError  # noqa: PLC0415 - psycopg only where it is used
    from psycopg.conninfo import make_conninfo  # noqa: PLC0415 - psycopg only where it is used

    # A list, since what is given need not be hashable.
    known = list(connections.settings)
    if alias is not None and alias not in known:
        rule = f"must be the alias of a database in DATABASES ({', '.join(known)})"
        raise refused("pgleader_django_database", alias, rule)
    connection = connections[alias or DEFAULT_DB_ALIAS]
    if connection.vendor != "postgresql":
        if alias is not None:
            raise refused("pgleader_django_database", alias, f"must be a Postgres database, not {connection.vendor}")
        return ""
    settings = connection.settings_dict
    names = {"dbname": "NAME", "user": "USER", "password": "PASSWORD", "host": "HOST", "port": "PORT"}
    parts = {key: str(settings[name]) for key, name in names.items() if settings.get(name)}
    # Django's OPTIONS mix libpq's keywords with its own and psycopg's; libpq's are the plain scalars.
    for key, value in settings.get("OPTIONS", {}).items():
        if isinstance(value, str | int) and not isinstance(value, bool):
            try:
                make_conninfo("", **{key: value})
            except ProgrammingError:
                continue
            parts[key] = str(value)
    return make_conninfo("", **parts)


def _read_database_url(setting: str, value: object) -> str:
    if not value:
        if any(os.environ.get(name) for name in LIBPQ_ENVIRONMENT):
            return ""
        raise ConfigurationError(
            f"{setting} is not set: give the URL of the Postgres database that holds the election,"
            " such as postgresql://user@host/dbname"
        )
    if not isinstance(value, str):
        raise ConfigurationError(f"{setting}: must be a string, not {type(value).__name__}")
    from psycopg import ProgrammingError  # noqa: PLC0415 - psycopg only where it is used
    from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415 - psycopg only where it is used

    try:
        conninfo_to_dict(value)
    except (ProgrammingError, UnicodeEncodeError):
        # libpq's own message would repeat a part of the URL, which may be the password.
        raise ConfigurationError(
            f"{setting} (value hidden): must be a libpq URL, such as postgresql://user@host/dbname,"
            " or a keyword string, such as host=db dbname=shop"
        ) from None
    if _is_torn(value):
        raise ConfigurationError(
            f"{setting} (value hidden): in a URL, write an @ of a password as %40, and a / as %2F, or what follows is"
            " taken for the host"
        )
    return value


def _is_torn(url: str) -> bool:
    """Tell whether a part of what should be the password of a URL would be read, and shown, as something else."""
    scheme, _, rest = url.partition("://")
    if scheme not in {"postgresql", "postgres"}:
        return False
    # As libpq reads it: what is before the first @, if no / is before that.
    has_credentials = "@" in rest.partition("/")[0]
    others = rest.partition("@")[2] if has_credentials else rest
    return "@" in others.partition("?")[0]


def _read_election(setting: str, value: object) -> str:
    if not isinstance(value, str) or not value or value != value.strip() or not value.isprintable():
        raise refused(setting, value, "must be a non-empty, printable name without surrounding blanks")
    if len(value) > MAX_ELECTION_CHARACTERS:
        raise refused(setting, value, f"must have at most {MAX_ELECTION_CHARACTERS} characters")
    return value


def _read_lock(setting: str, value: object) -> int | None:
    if value is None:
        return None
    rule = "must be a whole number that fits a Postgres bigint"
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise refused(setting, value, rule)
    try:
        number = int(value)
    except ValueError:
        raise refused(setting, value, rule) from None
    if number not in INT64:
        raise refused(setting, value, rule)
    return number


def _read_priority(setting: str, value: object) -> int:
    rule = f"must be a whole number from 0 to {MAX_PRIORITY}"
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise refused(setting, value, rule)
    try:
        number = int(value)
    except ValueError:
        raise refused(setting, value, rule) from None
    if not 0 <= number <= MAX_PRIORITY:
        raise refused(setting, value, rule)
    return number


def _read_django_database(setting: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise refused(setting, value, "must be the alias of a database in DATABASES")
    return value


def _read_app_version(setting: str, value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > MAX_VERSION_CHARACTERS:
        raise refused(setting, value, f"must be a string of at most {MAX_VERSION_CHARACTERS} printable characters")
    return value


def _seconds(least: float, most: float = MAX_TTL, *, derived: bool = False) -> Callable[[str, object], float]:
    def read(setting: str, value: object) -> float:
        rule = f"must be a number of seconds from {least:g} to {most:g}"
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise refused(setting, value, rule)
        try:
            seconds = float(value)
        except (ValueError, OverflowError):
            raise refused(setting, value, rule) from None
        # The class's own default; a zero that somebody wrote is as good a way to ask for it.
        if derived and seconds == 0:
            return 0.0
        if math.isnan(seconds) or not least <= seconds <= most:
            raise refused(setting, value, rule)
        return seconds

    return read


READERS: Mapping[str, Callable[[str, object], Any]] = {
    "database_url": _read_database_url,
    "election": _read_election,
    "lock": _read_lock,
    "ttl": _seconds(MIN_TTL),
    "renew_interval": _seconds(MIN_INTERVAL, derived=True),
    "trust_margin": _seconds(MIN_INTERVAL, derived=True),
    "poll_interval": _seconds(MIN_INTERVAL),
    "channels": read_channels,
    "schedule": read_policies,
    "retention": _seconds(MIN_RETENTION, MAX_RETENTION),
    "drain_timeout": _seconds(0.0),
    "priority": _read_priority,
    "app_version": _read_app_version,
    "django_database": _read_django_database,
}
