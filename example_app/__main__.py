"""`python -m example_app`: starts everything, runs the demo, cleans up."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

from example_app.demo import Demo, DemoError
from example_app.interrupts import Interrupted, Interrupts
from example_app.servers import EmbeddedPostgres, EmbeddedValkey, ServerFailed
from example_app.summary import describe
from example_app.view import View, choose

MIN_SECONDS = 10.0


def main() -> int:
    """Run the demo as the command line says; return the exit code."""
    options = _parse()
    interrupts = Interrupts()
    try:
        with closing(choose(live=options.live)) as view:
            return _run(options, view, interrupts)
    except Interrupted as interrupted:
        print("interrupted; everything was stopped", flush=True)
        return 128 + int(interrupted.args[0])
    except ServerFailed as failure:
        print(f"FAILED: {failure}", flush=True)
        return 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m example_app", description="A shop that outlives its leaders.")
    parser.add_argument("--seconds", type=float, default=45.0, help="how long the shop is open [45]")
    parser.add_argument("--workers", type=int, default=3, help="how many workers [3]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary to this file")
    parser.add_argument("--no-live", dest="live", action="store_false", help="plain lines, also in a terminal")
    parser.add_argument("--dashboard", action="store_true", help="serve the dashboard meanwhile, and print its address")
    options = parser.parse_args()
    if options.seconds < MIN_SECONDS:
        parser.error(f"--seconds: at least {MIN_SECONDS:.0f}, or no leader could be replaced")
    if options.workers < 2:
        parser.error("--workers: at least 2, or nobody could take over")
    return options


def _run(options: argparse.Namespace, view: View, interrupts: Interrupts) -> int:
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="pgleader-demo-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        # Everything temporary goes in there, and with it. If this is root, Postgres runs as somebody else.
        tempfile.tempdir = str(folder)
        folder.chmod(0o711)
        view.say("starting Postgres and Valkey")
        started = time.monotonic()
        postgres = stack.enter_context(EmbeddedPostgres())
        valkey = stack.enter_context(EmbeddedValkey())
        view.say(f"both are up after {time.monotonic() - started:.1f} s; logs of the workers are in {folder}")

        demo = Demo(postgres.url("postgres"), valkey.url, folder, view, interrupts)
        stack.callback(demo.close)
        try:
            summary, shortcomings = demo.run(options.workers, options.seconds, dashboard=options.dashboard)
        except DemoError as failure:
            view.say(f"{demo.cluster.last_words()}\nFAILED: {failure}")
            return 1
        if options.json:
            options.json.write_text(summary.as_json() + "\n")
        if shortcomings:
            view.say(demo.cluster.last_words())
        view.say("\n" + describe(summary))
        view.say("\n".join(f"FAILED: {what}" for what in shortcomings) or "The leader changed, and work went on.")
        return 1 if shortcomings else 0


if __name__ == "__main__":
    sys.exit(main())
