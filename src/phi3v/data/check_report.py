"""What ``phi3v check`` says at the terminal: faults by kind, numbers, a histogram."""

import sys
from collections import defaultdict
from typing import Any

import numpy as np

from phi3v.data.histogram import draw_text
from phi3v.data.inspection import Finding
from phi3v.data.survey import Survey

# Key in the report, its name, whether a sum means anything.
_ROWS = (
    ("tokens", "tokens per sample", True),
    ("supervised_tokens", "supervised tokens", True),
    ("pictures_per_record", "pictures per sample", True),
    ("crops_per_record", "crops per sample", True),
    ("picture_width", "picture width", False),
    ("picture_height", "picture height", False),
)
_COLUMNS = ("mean", "min", "p50", "p95", "p99", "max")
_SHORTENED = "shortened"


def print_findings(path: str, survey: Survey, most: int) -> None:
    """Print the findings by kind, the most frequent kind first.

    Args:
        path: What was checked.
        survey: Of all records.
        most: Most messages of one kind.
    """
    groups: dict[str, list[Finding]] = defaultdict(list)
    for finding in survey.listed():
        groups[finding.reason].append(finding)
    num_bad = len(survey) - int(survey.is_good().sum())
    print(f"{path}: {len(survey):,} records, {num_bad:,} of them bad")
    # Shortened records are good: they come last.
    by_count = sorted(groups.items(), key=lambda group: (group[0] == _SHORTENED, -len(group[1])))
    for reason, findings in by_count:
        note = " (good, but not whole)" if reason == _SHORTENED else ""
        print(f"\n{reason}: {len(findings):,} record{'s' * (len(findings) != 1)}{note}")
        for finding in findings[:most]:
            for message in finding.messages:
                print(f"  {printable(message)}")
        if len(findings) > most:
            print(f"  ... and {len(findings) - most:,} more; --show N prints N of a kind")


def printable(text: str) -> str:
    """Make a text safe for any terminal: no control characters, nothing it cannot encode."""
    plain = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    encoding = sys.stdout.encoding or "utf-8"
    return plain.encode(encoding, "backslashreplace").decode(encoding)


def print_report(report: dict[str, Any], lengths: np.ndarray) -> None:
    """Print the numbers of the good records.

    Args:
        report: See `phi3v.data.statistics.statistics`, with "eval" where there is a comparison.
        lengths: Tokens of every good record.
    """
    print(f"\n{report['good']:,} good records")
    if len(lengths):
        _print_table(report)
        ascii_only = "utf" not in (sys.stdout.encoding or "").lower()
        print("\ntokens per sample")
        print(draw_text(lengths, ascii_only=ascii_only))
    waste, repeats = report["waste"], report["duplicates"]
    lines = [
        (
            f"over max_seq_length {report['max_seq_length']:,}",
            f"{report['dropped_records']:,} left out, {report['shortened_records']:,} shortened",
        ),
        (
            f"over the rope switch {report['rotary_switch']:,}",
            f"{report['over_rotary_switch']:,}",
        ),
        (
            "share of padding",
            f"{waste['padded']:.1%} in random batches of {waste['batch_size']}; packed into rows "
            f"of {waste['pack_tokens']:,}: {waste['packed']:.1%}",
        ),
        ("repeated records", f"{repeats['repeats']:,}{_first(repeats['groups'])}"),
    ]
    if "eval" in report:
        found = report["eval"]["overlap"]
        lines.append(
            (
                "validation",
                f"{found['identical_records']:,} of {report['eval']['records']:,} records stand in "
                f"training, too; {found['records_with_shared_media']:,} share media with it",
            )
        )
    print()
    for name, text in lines:
        print(f"{name:<28}  {text}")


def _first(groups: list[list[int]]) -> str:
    if not groups:
        return ""
    shown = "; ".join(" = ".join(map(str, group[:4])) for group in groups[:3])
    return f" (by index: {shown}{' ...' * (len(groups) > 3)})"


def _print_table(report: dict[str, Any]) -> None:
    rows: list[tuple[str, ...]] = [("", "all", *_COLUMNS)]
    for key, name, has_total in _ROWS:
        found = report[key]
        if found["count"]:
            total = f"{found['total']:,}" if has_total else ""
            rows.append((name, total, *(f"{found[column]:,}" for column in _COLUMNS)))
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for name, *numbers in rows:
        cells = (f"{cell:>{width}}" for cell, width in zip(numbers, widths[1:], strict=True))
        print(f"{name:<{widths[0]}}  {'  '.join(cells)}".rstrip())
