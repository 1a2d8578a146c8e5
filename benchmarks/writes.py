"""What a durable notification costs the transaction that writes it, beside a plain insert, by one client and by eight.

What else the machine does changes all the time; so what is written one after the other is compared, and the ratio of
both is what counts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from statistics import mean

import psycopg

from benchmarks.bench import DURABLE, PAYLOAD, Bench, migrate
from benchmarks.figures import Figure, Results
from example_app.servers import EmbeddedPostgres, EmbeddedValkey

PLAIN = "plain insert"

# One program for each client, so that they do not share an interpreter. Told for how long to run which statement, it
# prints how long one takes, in milliseconds. It thinks in between, so that it makes `pace` of them in a second; or not
# at all, if that is 0.
WRITER = """
import json, random, sys, time, psycopg
url, payload, pace = sys.argv[1:]
thought = 1 / float(pace) if float(pace) else 0
with psycopg.connect(url, autocommit=True) as connection:
    for line in sys.stdin:
        statement, wake, seconds = json.loads(line)
        connection.execute("select set_config('pgleader.wake', %s, false)", [wake])
        count, spent, until = 0, 0.0, time.perf_counter() + seconds
        while not count or time.perf_counter() < until:
            if thought:
                time.sleep(random.uniform(0, 2 * thought))
            began = time.perf_counter()
            connection.execute(statement, [payload])
            spent += time.perf_counter() - began
            count += 1
        print(1000 * spent / count, flush=True)
"""
STATEMENTS = {
    "plain insert": ("insert into plain (payload) values (%s::jsonb)", "on"),
    "plain insert, always NOTIFY": (
        "with added as (insert into plain (payload) values (%s::jsonb)) select pg_notify('orders', '')",
        "on",
    ),
    "durable": ("select pgleader.notify('orders', %s::jsonb)", "on"),
    "durable, pgleader.wake = off": ("select pgleader.notify('orders', %s::jsonb)", "off"),
}
# Whether there is a leader, and how many transactions all clients together make in a second; 0 is as many as they can.
# Only those that come now and then have a NOTIFY: most of them, by the chances of WRITER.
SITUATIONS = {
    "nobody leads": (False, 0),
    "a leader relays": (True, 0),
    "at a moderate pace": (True, 400),
    "now and then": (True, 50),
}
SENDERS = {
    (situation, clients): f"{situation}, {clients} client{'s' * (clients > 1)}"
    for situation in SITUATIONS
    for clients in (1, 8)
}
FIGURES = {
    **{senders: Figure("a transaction", senders, "ms") for senders in SENDERS.values()},
    **{
        f"{senders}, beside a plain insert": Figure("beside a plain insert", senders, "times")
        for senders in SENDERS.values()
    },
}


def run(*, quick: bool) -> Results:
    """Measure."""
    results = Results("durable", FIGURES)
    results.about["durable"] = "pgleader.notify() in the transaction"
    with EmbeddedPostgres(settings=DURABLE) as postgres, EmbeddedValkey() as valkey:
        migrate(postgres.url())
        with psycopg.connect(postgres.url()) as connection:
            connection.execute(
                "create table plain (id bigint generated always as identity primary key, payload jsonb not null)"
            )
        bench = Bench(postgres.url(), valkey.url)
        for situation, (has_leader, pace) in SITUATIONS.items():
            for clients in (1, 8):
                with (
                    bench.running(bench.relay()) if has_leader else nullcontext(),
                    _writers(bench, clients, pace / clients) as all_,
                ):
                    _write(all_, PLAIN, 0.2)
                    senders = SENDERS[situation, clients]
                    for number in range(9 if quick else 51):
                        # What comes first or last has no advantage.
                        turns = sorted(STATEMENTS, reverse=bool(number % 2))
                        taken = {name: _write(all_, name, 0.2 if quick else 0.5) for name in turns}
                        for name, milliseconds in taken.items():
                            results.add(name, senders, milliseconds)
                            if name != PLAIN:
                                results.add(name, f"{senders}, beside a plain insert", milliseconds / taken[PLAIN])
                with psycopg.connect(bench.database) as connection:
                    connection.execute("truncate plain, pgleader.notifications")
    return results


@contextmanager
def _writers(bench: Bench, number: int, pace: float) -> Iterator[list[subprocess.Popen[str]]]:
    command = [sys.executable, "-c", WRITER, bench.database, json.dumps(PAYLOAD), str(pace)]
    writers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(number)
    ]
    try:
        yield writers
    finally:
        for writer in writers:
            writer.communicate()


def _write(writers: list[subprocess.Popen[str]], name: str, seconds: float) -> float:
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(json.dumps([*STATEMENTS[name], seconds]) + "\n")
        writer.stdin.flush()
    taken = []
    for writer in writers:
        assert writer.stdout is not None
        taken.append(float(writer.stdout.readline()))
    return mean(taken)
