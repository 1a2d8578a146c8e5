"""Settings: where they come from, what is refused, and in which words."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from celery_pgleader.channels import Route
from celery_pgleader.config import LIBPQ_ENVIRONMENT, MAX_PRIORITY, Config, election_of
from celery_pgleader.errors import ConfigurationError, shown

URL = "postgresql://app:s3cret@db.example/shop"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the environment of whoever runs the tests out of them."""
    for name in os.environ:
        if name.startswith(("PGLEADER_", "CELERY_")) or name in LIBPQ_ENVIRONMENT:
            monkeypatch.delenv(name)


def app(name: str | None = "shop", **conf: Any) -> Any:
    """Return what `Config` needs of a Celery app."""
    return SimpleNamespace(main=name, conf={f"pgleader_{key}": value for key, value in conf.items()})


def refusal(**values: Any) -> str:
    """Return the message with which values are refused."""
    with pytest.raises(ConfigurationError) as refused:
        Config(**{"database_url": URL, **values})
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_defaults_apply_where_nothing_is_set() -> None:
    config = Config(database_url=URL)
    assert (config.ttl, config.renew_interval, config.trust_margin, config.poll_interval) == (5.0, 1.0, 0.5, 10.0)
    assert config.trust_window == 4.5
    assert config.lock is None


def test_election_is_named_after_the_app() -> None:
    """Two apps in one database do not compete."""
    assert Config.from_app(app("shop", database_url=URL)).election == "shop"
    assert Config.from_app(app(None, database_url=URL)).election == "celery"
    assert election_of(app("shop")) == "shop"
    assert election_of(app("shop", election="bazaar")) == "bazaar"


def test_command_line_beats_environment_beats_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """An option that was not given has no value."""
    settings = app(database_url=URL, ttl=6, poll_interval=7, election="conf")
    monkeypatch.setenv("PGLEADER_TTL", "8")
    monkeypatch.setenv("PGLEADER_ELECTION", "environment")
    config = Config.from_app(settings, {"election": "option", "ttl": None})
    assert (config.election, config.ttl, config.poll_interval) == ("option", 8.0, 7.0)


@pytest.mark.parametrize("name", LIBPQ_ENVIRONMENT)
def test_libpq_environment_takes_the_place_of_a_url(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "somewhere")
    assert Config.from_app(app()).database_url == ""


def test_missing_url_is_refused() -> None:
    """The worker does not start, and says what to give."""
    with pytest.raises(ConfigurationError, match="pgleader_database_url is not set: give the URL"):
        Config.from_app(app())


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://app:s3cret@[db/shop",
        "postgresql://app:p@s3cret@db/shop",
        "postgres://app:12/s3cret@db/shop",
        "host=db s3cret",
        "s3cret\ud800",
        42,
    ],
)
def test_bad_url_is_refused_without_being_shown(url: object) -> None:
    """It may hold the password."""
    message = refusal(database_url=url)
    assert message.startswith("pgleader_database_url")
    assert "s3cret" not in message


def test_config_shows_no_secret() -> None:
    """Neither by repr nor by the words for logs."""
    config = Config(database_url=URL)
    assert "s3cret" not in repr(config)
    assert config.database == "shop on db.example"


@pytest.mark.parametrize(
    "url",
    ["postgresql://app:p%40ss%2F@db/shop", "postgresql://db/shop?user=app@corp", "host=db dbname=a@b password=/@"],
)
def test_url_with_an_at_sign_in_its_place_is_accepted(url: str) -> None:
    """In an escaped password, in a parameter, or in libpq's other form."""
    assert Config(database_url=url)


def test_url_may_have_several_hosts() -> None:
    """Libpq's own way to name a primary and its standbys."""
    config = Config(database_url="postgresql://a,b/shop?target_session_attrs=read-write")
    assert config.database == "shop on a,b"


@pytest.mark.parametrize("value", [0.5, 0, -1, float("nan"), float("inf"), "soon", True, None, [5], 10**400])
def test_bad_ttl_is_refused(value: object) -> None:
    """The message names the setting, the value and the rule."""
    message = refusal(ttl=value)
    assert message.startswith(f"pgleader_ttl = {shown(value)}: must be a number of seconds from 1 to 86400")


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, "many", 1.5, True])
def test_bad_lock_is_refused(value: object) -> None:
    """Only what fits a bigint is a lock key."""
    assert refusal(lock=value) == f"pgleader_lock = {value!r}: must be a whole number that fits a Postgres bigint"


@pytest.mark.parametrize("value", [-1, MAX_PRIORITY + 1, "high", 1.5, True])
def test_bad_priority_is_refused(value: object) -> None:
    rule = f"must be a whole number from 0 to {MAX_PRIORITY}"
    assert refusal(priority=value) == f"pgleader_priority = {value!r}: {rule}"


@pytest.mark.parametrize("value", [4242, "4242"])
def test_lock_may_be_a_string_of_digits(value: object) -> None:
    """As it is in the environment."""
    assert Config(database_url=URL, lock=value).lock == 4242  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["", " shop", "a\nb", 7, None, "x" * 101])
def test_bad_election_is_refused(value: object) -> None:
    """It stands in logs and queue names."""
    assert refusal(election=value).startswith(f"pgleader_election = {value!r}: must")


def test_incident_4_impossible_timing_is_refused() -> None:
    """A leader that would lose trust between two renewals must not start (redbeat#230)."""
    assert refusal(ttl=2, renew_interval=1.9) == (
        "pgleader_renew_interval = 1.9: must be below pgleader_ttl minus pgleader_trust_margin (1.8),"
        " or a leader would lose trust between two renewals"
    )
    assert refusal(ttl=2, trust_margin=2) == "pgleader_trust_margin = 2.0: must be below pgleader_ttl (2)"


def test_unknown_setting_is_refused_with_a_hint() -> None:
    """A typo must not silently mean the default."""
    with pytest.raises(
        ConfigurationError, match=r"pgleader_tll: there is no such setting; did you mean pgleader_ttl\?"
    ):
        Config.from_app(app(database_url=URL, tll=3))


def test_settings_may_be_in_a_namespace() -> None:
    """As Django projects have them: CELERY_PGLEADER_TTL."""
    shop = Celery("shop")
    shop.config_from_object({"CELERY_PGLEADER_TTL": 7, "CELERY_PGLEADER_DATABASE_URL": URL}, namespace="CELERY")
    assert Config.from_app(shop).ttl == 7
    typo = Celery("shop")
    typo.config_from_object({"CELERY_PGLEADER_TLL": 7, "CELERY_PGLEADER_DATABASE_URL": URL}, namespace="CELERY")
    with pytest.raises(ConfigurationError, match=r"CELERY_PGLEADER_TLL: there is no such setting; did you mean"):
        Config.from_app(typo)


def test_channel_may_have_one_task_or_several() -> None:
    config = Config(database_url=URL, channels={"orders": "shop.on_order", "it's": ["a", "b"]})  # type: ignore[dict-item]
    assert config.channels == {"orders": (Route("shop.on_order"),), "it's": (Route("a"), Route("b"))}


@pytest.mark.parametrize(
    "value",
    [
        "orders",
        {"orders": None},
        {"orders": [1]},
        {"orders": []},
        {"": "task"},
        {7: "task"},
        {"pgleader": "task"},
        {"orders": ["a", "a"]},
    ],
)
def test_bad_channels_are_refused(value: object) -> None:
    """With the setting's name."""
    assert refusal(channels=value).startswith(("pgleader_channels = ", "pgleader_channels["))
