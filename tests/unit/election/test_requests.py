"""Requests to the elector."""

from __future__ import annotations

import threading

from celery_pgleader.election.requests import Requests

PATIENCE = 30.0


def test_request_wakes_the_waiting_thread() -> None:
    """One that was made before is not waited for."""
    requests: Requests[str] = Requests()
    try:
        requests.put("early")
        requests.wait(PATIENCE)
        assert (requests.pending(), requests.take(), requests.take()) == (True, "early", None)
        threading.Timer(0.01, requests.put, ["late"]).start()
        requests.wait(PATIENCE)
        assert requests.take() == "late"
        for number in range(1000):
            requests.put(str(number))
        assert requests.take() == "0"
    finally:
        requests.close()
    requests.put("too late")
