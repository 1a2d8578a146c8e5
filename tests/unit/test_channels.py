"""Names of channels."""

from __future__ import annotations

import pytest

from celery_pgleader.channels import check_channel
from celery_pgleader.errors import ConfigurationError


@pytest.mark.parametrize("channel", ["x" * 64, "ü" * 32, "a\0b", "\ud800"])
def test_channel_name_that_postgres_would_cut_or_refuse_is_refused(channel: str) -> None:
    """Before its notifications get lost."""
    with pytest.raises(ConfigurationError, match="a channel name"):
        check_channel("channel", channel)


@pytest.mark.parametrize("channel", ["x" * 63, "ü" * 31, "quo\"te's; --", "UPPER case"])
def test_any_other_channel_name_is_accepted(channel: str) -> None:
    """Quotes included."""
    assert check_channel("channel", channel) == channel
