"""A `LeaderElector` in a process of its own, driven by one JSON object a line.

The environment says what it is: `FLEET_DATABASE_URL`, `FLEET_NAME`, `FLEET_LOCK`, `FLEET_CHANNELS` (a JSON list),
`FLEET_POLL_SECONDS`, `FLEET_TTL`.

It tells facts on stdout:

    {"event": "ready"}
    {"event": "leader", "value": true, "term": 7, "at": 1768478400.0}
    {"event": "notification", "channel": "orders", "payload": ...}
    {"event": "notified"} or {"event": "refused", "reason": "..."}    the end of a `notify`
    {"event": "trusted", "value": true}                               the answer to an `ask`
    {"event": "stopped"}

and obeys commands from stdin:

    {"notify": {"channel": "orders", "payload": ...}}
    {"ask": true}
    {"stop": true}

A closed stdin stops it too: whoever started it is gone. The Node programs in `tests/interop/node` speak the same,
but for `ask` and `at`, the time.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg

from celery_pgleader import Change, LeaderElector, PgLeaderError

telling = threading.Lock()


def tell(event: str, **fact: Any) -> None:
    """Write a fact; facts come from several threads."""
    with telling:
        print(json.dumps({"event": event, **fact}), flush=True)


def obey(elector: LeaderElector) -> None:
    """Carry out commands until told to stop."""
    for line in sys.stdin:
        command = json.loads(line)
        if "notify" in command:
            notify(elector, **command["notify"])
        elif "ask" in command:
            tell("trusted", value=elector.leadership.trusted())
        elif "stop" in command:
            return


def notify(elector: LeaderElector, channel: str, payload: Any) -> None:
    """Send a notification and tell how that ended."""
    try:
        elector.notify(payload, channel)
    except (PgLeaderError, psycopg.Error) as error:
        tell("refused", reason=str(error))
    else:
        tell("notified")


def on_change(change: Change) -> None:
    """Tell that the lead was gained or lost."""
    tell("leader", value=change.gained, term=change.term.number, at=time.time())


def handler(channel: str) -> Callable[[Any], None]:
    """Return what tells of a channel's notifications."""
    return lambda payload: tell("notification", channel=channel, payload=payload)


def main() -> None:
    """Stand for the election until told to stop."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    env = os.environ
    elector = LeaderElector(
        env["FLEET_DATABASE_URL"],
        node=env["FLEET_NAME"],
        lock=int(env["FLEET_LOCK"]),
        ttl=float(env.get("FLEET_TTL", "5")),
        poll_interval=float(env.get("FLEET_POLL_SECONDS", "10")),
        channels={channel: handler(channel) for channel in json.loads(env.get("FLEET_CHANNELS", "[]"))},
    )
    elector.leadership.subscribe(on_change)
    with elector:
        tell("ready")
        obey(elector)
    tell("stopped")


if __name__ == "__main__":
    main()
