"""Tables from what a run has written; those of README.md and docs/benchmarks.md between two marker comments. No I/O."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.curves import CURVES
from benchmarks.targets import verdicts

BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"

# What README's table has: benchmark, figure, how it is called there, and which quantile.
SHORT = (
    ("failover", "lock after kill -9", "`kill -9`: until the next leader", "median"),
    ("failover", "lock after TERM", "shutdown: until the next leader", "median"),
    ("failover", "leader after kill -9", "`kill -9`, schedulers: until the next leader", "median"),
    ("failover", "leader after SIGSTOP", "`SIGSTOP`, schedulers: until the next leader", "median"),
    ("failover", "missed after kill -9", "ticks missed by a `kill -9`, of one a second", "median"),
    ("failover", "duplicated after kill -9", "ticks duplicated by a `kill -9`", "median"),
    ("schedule", "lateness with 1,000 entries", "lateness of ticks, 1,000 entries, p99", "p99"),
    ("notifications", "latency", "from a notification to its task", "median"),
    ("notifications", "run per second", "tasks of notifications run by one worker", "median"),
    ("overhead", "statements of 3 nodes", "statements of three idle nodes", "median"),
    ("overhead", "start", "from start to ready", "median"),
    ("overhead", "memory", "memory of a worker with two children", "median"),
)

# What begins so is ours as well, set up or used in another way.
OWN = ("celery-pgleader", "LeaderElector", "durable")

Run = Mapping[str, Any]


def replaced(page: str, block: str) -> str:
    """Return a page with the block between its markers replaced."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{block.strip()}\n\n{END}{after}"


def short(run: Run) -> str:
    """Return README's table, and what belongs to it."""
    lines = ["| | celery-pgleader | others (**bold**: ahead) |", "|---|---|---|"]
    for benchmark, figure, words, quantile in SHORT:
        of = run["benchmarks"].get(benchmark)
        if of is None or figure not in of["contenders"].get(of["ours"], {}):
            continue
        unit, lower_is_better = of["figures"][figure]["unit"], of["figures"][figure]["lower_is_better"]
        others = [
            (theirs[figure][quantile], _bold(of, name, figure, shown(theirs[figure], quantile, unit), quantile), name)
            for name, theirs in of["contenders"].items()
            if name != of["ours"] and figure in theirs
        ]
        others.sort(key=lambda other: math.inf if other[0] is None else other[0], reverse=not lower_is_better)
        listed = "; ".join(f"{value} {name}" for _, value, name in others)
        ours = shown(of["contenders"][of["ours"]][figure], quantile, unit)
        lines.append(f"| {words} | {ours} | {listed} |")
    return "\n".join([*lines, "", provenance(run)])


def full(run: Run) -> str:
    """Return all tables, the targets and the curves, as docs/benchmarks.md has them."""
    parts = [provenance(run), _targets(run)]
    for name, of in run["benchmarks"].items():
        parts += [f"### {name}", benchmark(of)]
    drawn = [curve for curve in CURVES if curve.is_in(run["benchmarks"])]
    if drawn:
        parts += ["### growth, drawn", *(f"![{curve.title}](benchmarks/{curve.name}.svg)" for curve in drawn)]
    parts += ["## Where another is ahead", _ahead(run)]
    return "\n\n".join(parts)


def benchmark(of: Mapping[str, Any]) -> str:
    """Return the tables of one benchmark, and its notes."""
    parts = []
    for group, figures in _groups(of).items():
        rows = [f"| {group} | " + " | ".join(_title(of["figures"][figure]) for figure in figures) + " |"]
        rows.append("|---" * (len(figures) + 1) + "|")
        for name in _ours_first(of):
            cells = [_cell(of, name, figure) for figure in figures]
            if any(cells):
                rows.append(f"| {name} | " + " | ".join(cells) + " |")
        parts.append("\n".join(rows))
    about = [f"- {name}: {words}." for name, words in of["about"].items()]
    notes = [f"- {note}." for note in of["notes"]]
    return "\n\n".join([*parts, *(["\n".join([*about, *notes])] if about or notes else [])])


def provenance(run: Run) -> str:
    """Return on what was measured, when, and with which versions."""
    machine = run["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    extent = "`--quick`" if run["quick"] else "in full"
    return (
        f"Measured {run['date']}, {extent}, on {machine['processor']}, {machine['cores']} cores, {machine['memory']},"
        f" {machine['system']}, with {versions}."
    )


def shown(figure: Mapping[str, Any], quantile: str, unit: str = "") -> str:
    """Return a number as a table has it; `> 12 s` where all that is known is that it was not there by then."""
    value = figure[quantile]
    text = number(value) if value is not None else f"> {number(figure['beyond']['bound'])}"
    return f"{text} {unit}".strip()


def number(value: float) -> str:
    """Return three digits of a number, or all before the point."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def is_ahead(of: Mapping[str, Any], name: str, figure: str, quantile: str = "median") -> bool:
    """Tell whether another contender does better than we do."""
    ours, theirs = of["contenders"].get(of["ours"], {}).get(figure), of["contenders"][name][figure]
    if name.startswith(OWN) or ours is None or theirs[quantile] is None:
        return False
    if ours[quantile] is None:
        return True
    if of["figures"][figure]["lower_is_better"]:
        return bool(theirs[quantile] < ours[quantile])
    return bool(theirs[quantile] > ours[quantile])


def _cell(of: Mapping[str, Any], name: str, figure: str) -> str:
    summed = of["contenders"][name].get(figure)
    if summed is None:
        return ""
    median = _bold(of, name, figure, shown(summed, "median"))
    rest = f" / {shown(summed, 'p99')} / {shown(summed, 'max')}" if summed["n"] > 1 else ""
    ratio = of["ratios"].get(name, {}).get(figure)
    times = f", {'> ' if ratio.get('at_least') else ''}{number(ratio['value'])} x" if ratio else ""
    return f"{median}{rest} ({summed['n']}){times}"


def _bold(of: Mapping[str, Any], name: str, figure: str, text: str, quantile: str = "median") -> str:
    return f"**{text}**" if is_ahead(of, name, figure, quantile) else text


def _title(figure: Mapping[str, Any]) -> str:
    return f"{figure['words']}, {figure['unit']}" if figure["unit"] else str(figure["words"])


def _groups(of: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the figures that were measured, by their groups."""
    measured = {figure for figures in of["contenders"].values() for figure in figures}
    groups: dict[str, list[str]] = {}
    for name, figure in of["figures"].items():
        if name in measured:
            groups.setdefault(figure["group"], []).append(name)
    return groups


def _ours_first(of: Mapping[str, Any]) -> list[str]:
    return sorted(of["contenders"], key=lambda name: name != of["ours"])


def _targets(run: Run) -> str:
    rows = [
        f"| {verdict.target} | {verdict.measured} | {'met' if verdict.met else '**missed**'} |"
        for verdict in verdicts(run["benchmarks"])
    ]
    return "\n".join(["| Target | Measured | |", "|---|---|---|", *rows])


def _ahead(run: Run) -> str:
    lines = list(_each_ahead(run))
    return "\n".join(lines) or "Nowhere."


def _each_ahead(run: Run) -> Iterator[str]:
    for benchmark_name, of in run["benchmarks"].items():
        for figure, words in of["figures"].items():
            ahead: Sequence[str] = [
                f"{name} ({shown(of['contenders'][name][figure], 'median', words['unit'])})"
                for name in of["contenders"]
                if figure in of["contenders"][name] and is_ahead(of, name, figure)
            ]
            if ahead:
                ours = shown(of["contenders"][of["ours"]][figure], "median", words["unit"])
                yield f"- {benchmark_name}, {figure}: {', '.join(ahead)}; {of['ours']} has {ours}."
