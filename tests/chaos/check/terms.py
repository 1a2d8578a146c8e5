"""Terms rise, no two nodes trust that they lead at once, and after each fault another leads."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import combinations, pairwise

from tests.chaos.check.report import Report, in_ms
from tests.chaos.check.story import PARTITIONS, POSTGRES, Story

Window = tuple[float, float]
# What costs a leader its lead.
COSTLY = {"kill", "term", "stop", "terminate", "resign", *POSTGRES}


def check(story: Story, report: Report) -> None:
    """Look at the numbers, at the windows of trust, and at how soon another led."""
    ledger = {fact["term"]: fact for fact in story.of("ledger term")}
    # At the end all are shut down, one after the other, and some may lead for that moment.
    copied_at = max((fact["at"] for fact in ledger.values()), default=float("inf"))
    gained = [(fact["term"], fact["node"]) for fact in story.gained if fact["at"] <= copied_at]
    instants = [fact["gained_at"] for _, fact in sorted(ledger.items())]
    rising = all(before < after for (before, _), (after, _) in pairwise(gained))
    known = all(term in ledger and ledger[term]["node"] == node for term, node in gained)
    report.terms.update(number=len(ledger), monotonic=rising and known and instants == sorted(instants))
    if not report.terms["monotonic"]:
        report.offences.append(f"terms: gained {gained}, in the ledger {ledger}")
    windows: dict[int, list[Window]] = defaultdict(list)
    for fact in story.of("trusted"):
        windows[fact["term"]].append((fact["since"], fact["until"]))
    for term, later in combinations(sorted(windows), 2):
        seconds = _overlap(windows[term], windows[later])
        if seconds > 0:
            milliseconds = round(seconds * 1000, 1)
            report.terms["trusted_overlap_ms"] = max(report.terms["trusted_overlap_ms"], milliseconds)
            report.offences.append(f"trust: terms {term} and {later} were trusted at once for {milliseconds} ms")
    _look_at_failovers(story, report)


def _overlap(windows: list[Window], others: list[Window]) -> float:
    """Return for how long there was trust in both, at once."""
    since, until = min(since for since, _ in others), max(until for _, until in others)
    return max(min(end, until) - max(begin, since) for begin, end in windows)


def _look_at_failovers(story: Story, report: Report) -> None:
    report.faults = Counter(fact["kind"] for fact in story.faults)
    seconds: dict[str, list[float]] = defaultdict(list)
    for fault in story.faults:
        # Others keep a leader from Postgres.
        cut_off = fault["kind"] in PARTITIONS and fault["link"] == "postgres" and fault.get("how") != "slow"
        if fault["term"] is not None and (fault["kind"] in COSTLY or cut_off):
            later = [f["at"] for f in story.gained if f["term"] > fault["term"] and f["at"] >= fault["began"]]
            if later:
                seconds[fault["kind"]].append(min(later) - fault["began"])
            else:
                report.offences.append(f"terms: none came after {fault['kind']} of the leader of {fault['term']}")
    report.failover_ms = in_ms(seconds)
