"""Who may order something: whoever has the token, from a page of ours."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

COOKIE = "pgleader_session"
LEAST_TOKEN = 16
LASTS = 12 * 3600.0
MOST_SESSIONS = 100


@dataclass
class Visit:
    """Somebody who has given the token.

    Attributes:
        ends_at: until when, in monotonic seconds.
        form_token: what each of their forms has to hold, so that no other site can send one in their name.
        told: what became of their last order, to be shown once.

    """

    ends_at: float
    form_token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    told: tuple[bool, str] | None = None


class Access:
    """Knows those who have given the token; in memory only, so a restart forgets them."""

    def __init__(self, token: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepare.

        Args:
            token: what has to be given; none if nobody may order anything.
            clock: monotonic seconds.

        """
        self._token = token
        self._clock = clock
        self._visits: OrderedDict[str, Visit] = OrderedDict()

    @property
    def allowed(self) -> bool:
        """Whether anybody may order anything."""
        return self._token is not None

    def sign_in(self, token: str) -> str | None:
        """Return the cookie of a new visit, or none if the token is another."""
        if self._token is None or not secrets.compare_digest(token.encode(), self._token.encode()):
            return None
        cookie = secrets.token_urlsafe(32)
        self._visits[cookie] = Visit(self._clock() + LASTS)
        while len(self._visits) > MOST_SESSIONS:
            self._visits.popitem(last=False)
        return cookie

    def sign_out(self, cookie: str) -> None:
        """End a visit."""
        self._visits.pop(cookie, None)

    def visit(self, cookie: str | None) -> Visit | None:
        """Return whose cookie it is; none if it is nobody's, or too old."""
        visit = self._visits.get(cookie or "")
        return visit if visit is not None and visit.ends_at > self._clock() else None


def is_genuine(visit: Visit, form_token: str) -> bool:
    """Tell whether a form is one that was shown to a visitor."""
    return secrets.compare_digest(form_token.encode(), visit.form_token.encode())
