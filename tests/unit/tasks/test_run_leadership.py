"""What a task may know of the leadership under which it runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from celery_pgleader import LeadershipLost, current_leadership
from celery_pgleader.tasks import run_leadership


def test_run_trusts_its_own_term_only(believed: Callable[[int | None], None]) -> None:
    """A later term of the same node is another leadership."""
    leadership = run_leadership.RunLeadership("shop", 7)
    believed(7)
    leadership.ensure()
    for term in (8, None):
        believed(term)
        assert not leadership.trusted()
        with pytest.raises(LeadershipLost, match="term 7 of election shop is over"):
            leadership.ensure()


def test_current_leadership_is_none_outside_of_a_task() -> None:
    assert current_leadership() is None
