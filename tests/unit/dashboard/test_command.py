"""The command that serves the dashboard."""

from __future__ import annotations

from typing import Any

import pytest

from celery_pgleader.dashboard.command import CannotServe, serve
from tests.support.sights import UTC


@pytest.mark.parametrize(
    ("bind", "more", "words"),
    [
        ("5556", {}, "--bind 5556: must be an address and a port"),
        ("127.0.0.1:x", {}, "must be an address and a port"),
        ("127.0.0.1:70000", {}, "must be an address and a port"),
        ("127.0.0.1:0", {"allow_actions": True}, "--allow-actions needs a token of at least 16 characters"),
        ("127.0.0.1:0", {"allow_actions": True, "token": "short"}, "--allow-actions needs a token"),
    ],
)
def test_unusable_option_is_refused_with_what_to_do(bind: str, more: dict[str, Any], words: str) -> None:
    """In one line."""

    class App:
        main, timezone, conf = "shop", UTC, {"pgleader_database_url": "host=db"}

    given: dict[str, Any] = {"allow_actions": False, "token": None, **more}
    with pytest.raises(CannotServe, match=words):
        serve(App(), bind, say=print, warn=print, **given)
