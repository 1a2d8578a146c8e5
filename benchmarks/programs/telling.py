"""Tells the benchmark what happens, in datagrams, from whatever process: the stamp is set here."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any

_ear = ("127.0.0.1", int(os.environ["BENCH_EAR"]))
_node = os.environ["BENCH_NODE"]


def tell(event: str, **fact: Any) -> None:
    """Tell of something that happened just now, by a clock that all processes of this machine share."""
    fact = {"event": event, "node": _node, "at": time.monotonic(), **fact}
    # Another socket each time: what a process inherits, it may close.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as speaker:
        speaker.sendto(json.dumps(fact).encode(), _ear)
