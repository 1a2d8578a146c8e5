"""What we set out to reach, and whether a run reached it. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

OURS, FLOOR, TRY_LOCK = "celery-pgleader", "floor: waits in pg_advisory_lock", "try-lock polling, 0.1 s"
ELECTED = ("celery-redbeat", "single-beat", "celery-multibeat-scheduler", "celery-leased-beat")
FAULTS = ("TERM", "kill -9", "SIGSTOP", "session ended", "server restart")
SENDERS = [
    f"{situation}, {clients}"
    for situation in ("nobody leads", "a leader relays", "at a moderate pace", "now and then")
    for clients in ("1 client", "8 clients")
]

Benchmarks = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Verdict:
    """What came of a target.

    Attributes:
        target: in words.
        measured: in words.
        met: whether it was.

    """

    target: str
    measured: str
    met: bool


class Unknown(Exception):
    """The run has no figure that tells."""


def verdicts(benchmarks: Benchmarks) -> list[Verdict]:
    """Return what came of each target of which a run tells."""
    found = []
    for target, check in TARGETS.items():
        try:
            measured, met = check(benchmarks)
        except Unknown:
            continue
        found.append(Verdict(target, measured, met))
    return found


def _median(benchmarks: Benchmarks, name: str, contender: str, figure: str) -> float:
    value = _figure(benchmarks, name, contender, figure)["median"]
    if value is None:
        raise Unknown
    return float(value)


def _figure(benchmarks: Benchmarks, name: str, contender: str, figure: str) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = benchmarks[name]["contenders"][contender][figure]
    except KeyError:
        raise Unknown from None
    return found


def _thrice_the_floor(fault: str) -> Callable[[Benchmarks], tuple[str, bool]]:
    def check(benchmarks: Benchmarks) -> tuple[str, bool]:
        ours, floor = (_median(benchmarks, "failover", who, f"lock after {fault}") for who in (OURS, FLOOR))
        return f"{ours:.1f} ms to {floor:.1f} ms: {ours / floor:.1f} times", ours <= 3 * floor

    return check


def _best_rival(benchmarks: Benchmarks) -> tuple[str, bool]:
    ours = _median(benchmarks, "failover", OURS, "lock after kill -9")
    medians = {
        name: figures["leader after kill -9"]["median"]
        for name, figures in benchmarks["failover"]["contenders"].items()
        if name.startswith(ELECTED) and "leader after kill -9" in figures
    }
    known = {name: median for name, median in medians.items() if median is not None}
    if not known:
        raise Unknown
    best = min(known, key=known.__getitem__)
    ratio = 1000 * known[best] / ours
    return f"{ratio:.0f} times quicker than {best}", ratio >= 100


def _polling(benchmarks: Benchmarks) -> tuple[str, bool]:
    ours, theirs = (_median(benchmarks, "failover", who, "lock after kill -9") for who in (OURS, TRY_LOCK))
    return f"{ours:.1f} ms to {theirs:.1f} ms", ours < theirs


def _statements(benchmarks: Benchmarks) -> tuple[str, bool]:
    ours, theirs = (_median(benchmarks, "overhead", who, "statements of 3 nodes") for who in (OURS, TRY_LOCK))
    return f"{ours:.1f} a second from 3 nodes, to {theirs:.1f}", ours <= 1.5


def _ticks(kind: str, contender: str) -> Callable[[Benchmarks], tuple[str, bool]]:
    def check(benchmarks: Benchmarks) -> tuple[str, bool]:
        counted = {}
        for fault in FAULTS:
            figure = _figure(benchmarks, "failover", contender, f"{kind} after {fault}")
            counted[fault] = figure["max"] if figure["max"] is not None else figure["beyond"]["bound"]
        some = ", ".join(f"{count:g} after {fault}" for fault, count in counted.items() if count)
        return some or "none", not some

    return check


def _lateness(size: str) -> Callable[[Benchmarks], tuple[str, bool]]:
    def check(benchmarks: Benchmarks) -> tuple[str, bool]:
        figure = f"lateness with {size} entries"
        ours, stock = (_figure(benchmarks, "schedule", who, figure)["p99"] for who in (OURS, "celery beat"))
        return f"{ours:.1f} ms to {stock:.1f} ms", ours <= stock

    return check


def _dispatched(broker: str) -> Callable[[Benchmarks], tuple[str, bool]]:
    def check(benchmarks: Benchmarks) -> tuple[str, bool]:
        figure = f"dispatched per second, {broker}"
        contenders = ("celery-pgleader, durable", "a loop of apply_async")
        ours, loop = (_median(benchmarks, "notifications", who, figure) for who in contenders)
        return f"{ours:.0f} to {loop:.0f}: {ours / loop:.2f} times", ours >= loop

    return check


def _after_the_commit(benchmarks: Benchmarks) -> tuple[str, bool]:
    contenders = ("celery-pgleader, durable", "a bare listener")
    ours, bare = (_median(benchmarks, "notifications", who, "latency after commit") for who in contenders)
    return f"{ours:.1f} ms to {bare:.1f} ms", ours <= bare + 2


def _write_cost(senders: str) -> Callable[[Benchmarks], tuple[str, bool]]:
    def check(benchmarks: Benchmarks) -> tuple[str, bool]:
        times = _median(benchmarks, "writes", "durable", f"{senders}, beside a plain insert")
        return f"{times:.2f} times", times <= 1.5

    return check


def _overhead(contender: str) -> Callable[[Benchmarks], tuple[str, bool]]:
    def check(benchmarks: Benchmarks) -> tuple[str, bool]:
        percent = _median(benchmarks, "overhead", contender, "slower than without")
        return f"{percent:.1f} %", percent < 2

    return check


def _start(benchmarks: Benchmarks) -> tuple[str, bool]:
    later = _median(benchmarks, "overhead", OURS, "later than without")
    return f"{later:.0f} ms", later <= 100


TARGETS: Mapping[str, Callable[[Benchmarks], tuple[str, bool]]] = {
    "after kill -9, the next leader within 3 times the floor": _thrice_the_floor("kill -9"),
    "after TERM, the next leader within 3 times the floor": _thrice_the_floor("TERM"),
    "after kill -9, at least 100 times quicker than the best tuned Celery rival": _best_rival,
    "after kill -9, quicker than try-lock polling at 0.1 s": _polling,
    "about one statement a second from the whole idle fleet": _statements,
    "no tick duplicated by any fault": _ticks("duplicated", OURS),
    "no tick missed by any fault": _ticks("missed", OURS),
    "no tick missed by any fault, with misfire = all": _ticks("missed", "celery-pgleader (tuned)"),
    **{f"lateness p99 with {size} entries at most stock beat's": _lateness(size) for size in ("10", "1,000", "10,000")},
    **{
        f"durable notifications dispatched to {broker} at least as fast as a loop of apply_async": _dispatched(broker)
        for broker in ("Valkey", "RabbitMQ")
    },
    "a durable notification's task runs at most 2 ms later than a bare listener's": _after_the_commit,
    **{
        f"a durable notification costs its sender at most 1.5 times a plain insert, {senders}": _write_cost(senders)
        for senders in SENDERS
    },
    "a leader runs ordinary tasks less than 2 % slower": _overhead(OURS),
    "a follower runs ordinary tasks less than 2 % slower": _overhead("celery-pgleader, follower"),
    "a worker with --pgleader is ready at most 100 ms later": _start,
}
