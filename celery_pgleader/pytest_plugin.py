"""Fixtures for users' tests. Every run of pytest loads this file, so it imports nothing of ours before it is used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from celery_pgleader.testing import FakeNode


@pytest.fixture
def pgleader_app() -> Any:
    """Give the Celery app whose tasks are tested: the current one. Override it to test another."""
    from celery import app as celery_app  # noqa: PLC0415 - only where the fixture is used

    app: Any = celery_app.app_or_default()
    # What Celery makes up where there is none.
    if app.main == "default":
        pytest.fail("no Celery app was imported: import yours, or override the fixture pgleader_app", pytrace=False)
    return app


@pytest.fixture
def pgleader(pgleader_app: Any) -> Iterator[FakeNode]:
    """Give a node that does not lead, and leads when the test says so."""
    from celery_pgleader.testing import FakeNode  # noqa: PLC0415 - only where the fixture is used

    with FakeNode(pgleader_app) as node:
        yield node
