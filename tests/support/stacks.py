"""Where every thread and greenlet of a process is, on SIGUSR2: for a worker that does not end when it should."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import traceback
from typing import Any


def dump_on_signal() -> None:
    """Have this process, and those that it forks, write its stacks to stderr when it gets SIGUSR2."""
    if "greenlet" in sys.modules:
        signal.signal(signal.SIGUSR2, _dump_greenlets)
    else:
        faulthandler.register(signal.SIGUSR2, file=2)


def _dump_greenlets(_number: int, frame: Any) -> None:
    from celery.worker import state
    from greenlet import greenlet

    lines = [f"should_stop={state.should_stop!r} should_terminate={state.should_terminate!r}\n"]
    lines += ["running:\n", *traceback.format_stack(frame)]
    for item in gc.get_objects():
        if isinstance(item, greenlet) and item.gr_frame is not None:
            lines += [f"{item!r}:\n", *traceback.format_stack(item.gr_frame)]
    # Not by print(): this may run in the hub, which must not be left.
    os.write(2, "".join(lines).encode())
