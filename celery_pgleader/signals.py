"""Celery signals of the election, for information only: nothing that must not be missed should hang on one.

Receivers run in a thread of their own, in the order of the changes. An error in one is logged.
"""

from __future__ import annotations

from celery.utils.dispatch import Signal

#: This worker leads. Arguments: `sender` (node name), `term` (a `Term`), `reason`.
leadership_gained = Signal(name="leadership_gained", providing_args=["term", "reason"])

#: This worker leads no more. Arguments: `sender` (node name), `term` (a `Term`), `reason`.
leadership_lost = Signal(name="leadership_lost", providing_args=["term", "reason"])
