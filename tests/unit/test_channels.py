"""Names of channels."""

from __future__ import annotations

import os

import pytest

from celery_pgleader.channels import check_channel
from celery_pgleader.config import LIBPQ_ENVIRONMENT
from celery_pgleader.errors import ConfigurationError


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the environment of whoever runs the tests out of them."""
    for name in os.environ:
        if name.startswith(("PGLEADER_", "CELERY_")) or name in LIBPQ_ENVIRONMENT:
            monkeypatch.delenv(name)


@pytest.mark.parametrize("channel", ["x" * 64, "ü" * 32, "a\0b", "\ud800"])
def test_channel_name_that_postgres_would_cut_or_refuse_is_refused(channel: str) -> None:
    """Before its notifications get lost."""
    with pytest.raises(ConfigurationError, match="a channel name"):
        check_channel("channel", channel)


@pytest.mark.parametrize("channel", ["x" * 63, "ü" * 31, "quo\"te's; --", "UPPER case"])
def test_any_other_channel_name_is_accepted(channel: str) -> None:
    """Quotes included."""
    assert check_channel("channel", channel) == channel
