"""Whatever is written into the settings: it is taken, or refused in one line that says which setting it was."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celery_pgleader.config import PREFIX, Config
from celery_pgleader.errors import ConfigurationError

URL = "postgresql://app:s3cret@db.example/shop"
LONGEST = 500

names = st.text(st.characters() | st.sampled_from("'\"\\\0%:\n\r\u2028\x85\ud800{}"), max_size=20)
texts = names | st.just("x" * 1_000)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(
        [10**400, -(10**400), 2**63, float("nan"), float("inf"), -1.0, 0, "0", "1e999", "5 s", "٣", "1_0"]
    )
    | st.floats()
    | st.binary(max_size=5)
    | st.builds(object)
    | texts
)
words = st.sampled_from(
    ["misfire", "misfire_grace", "overlap", "deduplicate", "task", "queue", "decode", "options", "all", "skip", "json"]
)
values = st.recursive(
    scalars | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | names | st.integers(), inner, max_size=3),
    max_leaves=8,
)
fuzzed = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def assert_clear(message: str, *names: str) -> None:
    """Check the words in which something is refused."""
    assert len(message.splitlines()) == 1, message
    assert any(name in message for name in names), message
    assert len(message) < LONGEST, message[:LONGEST]
    # It can be printed and logged.
    message.encode()


def assert_hidden(secret: str, message: str) -> None:
    """Check that something is not shown."""
    assert secret not in message


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Config)])
@fuzzed
@given(value=values)
def test_any_setting_is_accepted_or_refused_by_name(field: str, value: Any) -> None:
    """Also where it is refused together with another."""
    try:
        config = Config(**{"database_url": URL, field: value})
    except ConfigurationError as error:
        assert_clear(str(error), PREFIX + field, PREFIX)
        if field == "database_url" and isinstance(value, str) and len(value) > 3:
            assert_hidden(value, str(error))
    else:
        assert "s3cret" not in repr(config)
        assert 0 < config.renew_interval < config.trust_window < config.ttl


@fuzzed
@given(
    given=st.dictionaries(
        st.sampled_from([f.name for f in dataclasses.fields(Config)]) | st.from_regex(r"\w{1,20}", fullmatch=True),
        values,
        max_size=4,
    )
)
def test_any_settings_of_an_app_are_accepted_or_refused_clearly(given: dict[str, Any]) -> None:
    """Also those that there are not."""
    app = type("App", (), {"main": "shop", "conf": {PREFIX + name: value for name, value in given.items()}})
    try:
        Config.from_app(app)
    except ConfigurationError as error:
        assert_clear(str(error), PREFIX)


@fuzzed
@given(password=st.text("aZ9@/:?#%[]&=,; '\\é", min_size=1, max_size=12))
def test_unescaped_password_in_a_url_is_not_shown(password: str) -> None:
    """It is read as a password, or the URL is refused: no part of it is ever taken for something that is shown."""
    try:
        config = Config(database_url=f"postgresql://shop:{password}@db/shop")
    except ConfigurationError as error:
        assert_clear(str(error), "pgleader_database_url (value hidden)")
    else:
        assert config.database == "shop on db"
