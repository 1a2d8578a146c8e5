"""Sign-in to the dashboard."""

from __future__ import annotations

from celery_pgleader.dashboard.access import LASTS, LEAST_TOKEN, MOST_SESSIONS, Access, is_genuine


def test_only_the_token_opens_a_session() -> None:
    """For twelve hours, until sign-out, and so many at most."""
    now = [0.0]
    access = Access("t" * LEAST_TOKEN, lambda: now[0])
    assert access.sign_in("t") is None
    assert access.sign_in("") is None
    assert Access(None).sign_in("") is None
    cookie = access.sign_in("t" * LEAST_TOKEN)
    assert cookie is not None
    visit = access.visit(cookie)
    assert visit is not None
    assert visit.form_token not in repr(visit)
    assert is_genuine(visit, visit.form_token)
    assert not is_genuine(visit, "ä")
    assert access.visit(None) is access.visit("x") is None
    now[0] = LASTS
    assert access.visit(cookie) is None
    now[0] = 0.0
    access.sign_out(cookie)
    assert access.visit(cookie) is None
    cookies = [access.sign_in("t" * LEAST_TOKEN) for _ in range(MOST_SESSIONS + 1)]
    assert access.visit(cookies[0]) is None
    assert all(access.visit(cookie) for cookie in cookies[1:])
