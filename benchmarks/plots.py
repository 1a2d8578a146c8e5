"""Draws curves as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.curves import CURVES, Curve


def draw(benchmarks: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Draw all for which there are figures."""
    import matplotlib as mpl  # noqa: PLC0415 - in the group `benchmarks`, and only here

    mpl.use("svg")
    # The same figures make the same file.
    mpl.rcParams["svg.hashsalt"] = "benchmarks"
    for curve in CURVES:
        if curve.is_in(benchmarks):
            _draw(curve, benchmarks, folder / f"{curve.name}.svg")


def _draw(curve: Curve, benchmarks: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    from matplotlib import pyplot as plt  # noqa: PLC0415 - the same

    picture, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for contender, points in curve.points(benchmarks).items():
        numbers, medians, p99s = zip(*points, strict=True)
        (line,) = axes.plot(numbers, medians, marker="o", label=contender)
        axes.fill_between(numbers, medians, p99s, color=line.get_color(), alpha=0.1)
    # A logarithmic one that has a place for 0.
    axes.set_xscale("symlog", linthresh=1)
    axes.set_yscale("log")
    axes.set(title=f"{curve.title}: medians, and up to p99", xlabel=curve.x, ylabel=curve.y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    picture.savefig(path, metadata={"Date": None})
    plt.close(picture)
