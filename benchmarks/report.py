"""Turns measurements into the table of the terminal, and into ratios against the bars."""

import statistics
from typing import Any

Runs = list[dict[str, Any]]


def of_arm(runs: Runs, arm: str, field: str) -> list[float]:
    """Collect a measured field of all runs of an arm."""
    return [run[field] for run in runs if run["arm"] == arm]


def median(runs: Runs, arm: str, field: str) -> float:
    """Return the median over the runs of an arm."""
    return statistics.median(of_arm(runs, arm, field))


def agreement(runs: Runs) -> float:
    """Return the largest relative difference of losses and norms of gradients over all runs."""
    spreads = []
    for field in ("loss", "grad_norm"):
        values = [run[field] for run in runs]
        spreads.append((max(values) - min(values)) / max(abs(value) for value in values))
    return max(spreads)


def bars(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare with what was set out to reach.

    Returns:
        ``name``, ``measured``, ``bar``, ``at_least`` (whether more is better) and ``met``.
    """
    steps, counters = report["steps"], report["counters"]

    def faster(name: str) -> float:
        return median(steps[name], "original", "cpu_s") / median(steps[name], "ours", "cpu_s")

    def smaller(name: str) -> float:
        return median(steps[name], "ours", "peak_mb") / median(steps[name], "original", "peak_mb")

    ours = counters["ours"]
    executed = max(ours[method]["executed_over_needed"] for method in ("lora", "full"))
    rows = [
        ("LoRA step, times the original", faster("LoRA, mixed batch"), 2.2, True),
        ("full step, times the original", faster("full, mixed batch"), 1.8, True),
        (
            "4 questions a picture, supervised tokens/s",
            faster("LoRA, 4 questions about a picture"),
            6.0,
            True,
        ),
        ("vocabulary 32064: peak memory", smaller("LoRA, vocabulary 32064"), 0.25, False),
        ("the same, times the original", faster("LoRA, vocabulary 32064"), 2.2, True),
        ("executed / needed operations", executed, 1.02, False),
        ("waits of the host", max(ours[m]["waits"] for m in ("lora", "full")), 0, False),
        ("crops encoded / real", ours["crops"], 1.0, False),
        ("loader, 16 crops, times the published", report["loader-16"]["cpu_ratio"], 3.5, True),
        ("packs full", report["packing"][-1]["filled"], 0.97, True),
        ("ranks' imbalance", report["packing"][-1]["imbalance"], 0.02, False),
        ("merge, CPU over copying", report["merge"]["cpu_ratio"], 1.3, False),
        ("merge, time over copying", report["merge"]["wall_ratio"], 1.3, False),
    ]
    return [
        {
            "name": name,
            "measured": value,
            "bar": bar,
            "at_least": at_least,
            "met": value >= bar if at_least else value <= bar,
        }
        for name, value, bar, at_least in rows
    ]


def format_report(report: dict[str, Any]) -> str:
    """Lay everything out for a terminal of 80 columns."""
    blocks = [_steps(report["steps"]), _counters(report["counters"]), _scaling(report)]
    lines = ["bar" + " " * 44 + "measured     bar"]
    for row in report["bars"]:
        sign = ">=" if row["at_least"] else "<="
        mark = "" if row["met"] else "   missed"
        lines.append(
            f"{row['name']:<46} {row['measured']:>9.2f} {sign} {row['bar']:<5g}{mark}".rstrip()
        )
    blocks.append("\n".join(lines))
    for name in report["void"]:
        blocks.append(f"VOID: the arms of {name!r} do not agree in loss or gradients")
    minutes = report.get("cpu_minutes")
    blocks.append(f"{minutes:.1f} CPU minutes on one thread; {report['machine']}")
    return "\n\n".join(blocks)


def _steps(steps: dict[str, Runs]) -> str:
    lines = ["one training step                     CPU s  (least)  peak MB   times  memory"]
    for name, runs in steps.items():
        first = runs[0]
        lines.append(f"{name}: {first['tokens']:,} tokens, arms agree to {agreement(runs):.0e}")
        for arm in dict.fromkeys(run["arm"] for run in runs):
            seconds, peak = (median(runs, arm, field) for field in ("cpu_s", "peak_mb"))
            least = min(of_arm(runs, arm, "cpu_s"))
            times = median(runs, "original", "cpu_s") / seconds
            memory = peak / median(runs, "original", "peak_mb")
            lines.append(
                f"  {arm:<32} {seconds:>8.2f} {least:>8.2f} {peak:>8.0f} "
                f"{times:>6.2f}x {memory:>6.2f}x"
            )
    return "\n".join(lines)


def _counters(counters: dict[str, Any]) -> str:
    lines = [
        "counted              method executed/ waits saved a token operations crops  MB a",
        "                              needed          and layer   a layer   /real sample",
    ]
    for arm, counted in counters.items():
        for method in ("lora", "full"):
            own = counted[method]
            lines.append(
                f"{arm:<20} {method:<6} {own['executed_over_needed']:>8.3f} {own['waits']:>5} "
                f"{own['saved']:>11.1f} d {own['operations']:>9.0f} "
                f"{counted['crops']:>6.2f} {counted['megabytes']:>6.1f}"
            )
    return "\n".join(lines)


def _scaling(report: dict[str, Any]) -> str:
    lines = ["scaling               from        to     CPU s each        peak MB each"]
    for arm, axes in report["scaling"].items():
        for axis, points in axes.items():
            seconds = " -> ".join(f"{point['cpu_s']:.2f}" for point in (points[0], points[-1]))
            peaks = " -> ".join(f"{point['peak_mb']:.0f}" for point in (points[0], points[-1]))
            lines.append(
                f"{arm + ', ' + axis:<20} {points[0]['at']:>5} {points[-1]['at']:>9}   "
                f"{seconds:<18} {peaks}"
            )
    for point in report["packing"]:
        lines.append(
            f"packing {point['at']:>9,} samples: {point['cpu_s']:.2f} CPU s, "
            f"{point['peak_mb']:.0f} MB, {point['filled']:.1%} full, ranks within "
            f"{point['imbalance']:.2%}"
        )
    return "\n".join(lines)
