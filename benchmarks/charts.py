"""Plots of the report as SVG files; readable on light and dark pages, without a library."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import median
from phi3v.model.segments import Segment, segment_mask

_COLOURS = {"original": "#8a8f98", "original-sdpa": "#b4b8bf", "hf": "#c98a2b", "ours": "#2f6fdb"}
_OTHER = "#6fa3ef"
Curve = Sequence[tuple[float, float]]
_STYLE = (
    "<style>text{font:13px system-ui,sans-serif;fill:#444}.h{font-weight:600;font-size:14px}"
    "@media(prefers-color-scheme:dark){text{fill:#ccc}}</style>"
)


def draw_all(report: dict[str, Any], folder: Path) -> list[Path]:
    """Write every plot; the paths in order."""
    steps = {}
    for name, runs in report["steps"].items():
        arms = list(dict.fromkeys(run["arm"] for run in runs))
        steps[name] = {arm: median(runs, arm, "cpu_s") for arm in arms}
    memory = {}
    for name, runs in report["steps"].items():
        arms = list(dict.fromkeys(run["arm"] for run in runs))
        memory[name] = {arm: median(runs, arm, "peak_mb") for arm in arms}
    pictures = {
        "step_time.svg": bar_chart("CPU seconds of one training step", steps, "{:.1f} s"),
        "step_memory.svg": bar_chart("Peak memory of one training step", memory, "{:.0f} MB"),
    }
    for axis in ("length", "images", "vocabulary"):
        lines = {
            arm: [(point["at"], point["cpu_s"], point["peak_mb"]) for point in axes[axis]]
            for arm, axes in report["scaling"].items()
        }
        pictures[f"scaling_{axis}.svg"] = line_charts(f"LoRA step over {axis}", lines)
    pictures["shared_images.svg"] = mask_picture()
    for name, picture in pictures.items():
        (folder / name).write_text(picture, encoding="utf-8")
    return [folder / name for name in pictures]


def bar_chart(title: str, groups: dict[str, dict[str, float]], unit: str) -> str:
    """Draw horizontal bars in groups, each with its value."""
    width, left, row = 680, 120, 20
    parts, y = [_text(10, 22, title, "h")], 46
    for name, bars in groups.items():
        parts.append(_text(10, y + 12, name))
        y += row
        longest = max(bars.values())
        for arm, value in bars.items():
            length = value / longest * (width - left - 90)
            parts.append(_text(left - 8, y + 13, arm, anchor="end"))
            parts.append(
                f'<rect x="{left}" y="{y + 2}" width="{length:.1f}" height="{row - 5}" rx="2" '
                f'fill="{_COLOURS.get(arm, _OTHER)}"/>'
            )
            parts.append(_text(left + length + 6, y + 13, unit.format(value)))
            y += row
        y += 12
    return _svg(width, y, title, parts)


def line_charts(title: str, lines: dict[str, list[tuple[float, float, float]]]) -> str:
    """Draw time and memory beside each other over the same axis; points are (at, s, MB)."""
    parts = [_text(10, 22, title, "h")]
    for panel, label in enumerate(("CPU seconds", "peak MB")):
        curves: dict[str, Curve] = {
            arm: [(point[0], point[1 + panel]) for point in points] for arm, points in lines.items()
        }
        parts += _panel(panel * 340, label, curves)
    return _svg(680, 260, title, parts)


def soak_chart(report: dict[str, Any]) -> str:
    """Draw everything that a long run held, over its steps; every axis begins at 0."""
    parts = [_text(10, 22, f"A run of {report['steps']:,} steps", "h")]
    for place, row in enumerate(report["rows"]):
        curve: Curve = [(one["step"], one[row["name"]]) for one in report["samples"]]
        x, y = place % 2 * 340, place // 2 * 190
        parts += _panel(x, row["name"], {"": curve}, y=y, dots=False)
    return _svg(680, 60 + 190 * ((len(report["rows"]) + 1) // 2), "What a long run holds", parts)


def _panel(
    x: int,
    label: str,
    curves: dict[str, Curve],
    *,
    y: int = 0,
    dots: bool = True,
) -> list[str]:
    left, right, top, bottom = x + 60, x + 320, y + 60, y + 220 - 40 * (not dots)
    far = max(at for curve in curves.values() for at, _ in curve)
    high = max(value for curve in curves.values() for _, value in curve)
    parts = [
        _text(left, top - 14, label),
        f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="#999"/>',
        _text(left - 6, top + 5, f"{high:.3g}", anchor="end"),
        _text(left - 6, bottom + 4, "0", anchor="end"),
        _text(right, bottom + 18, f"{far:,.0f}", anchor="end"),
    ]
    for number, (arm, curve) in enumerate(curves.items()):
        colour = _COLOURS.get(arm, _OTHER)
        places = [
            (left + at / far * (right - left), bottom - value / high * (bottom - top))
            for at, value in curve
        ]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if not dots:
            continue
        parts += [
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>' for px, py in places
        ]
        parts.append(
            f'<rect x="{left + 90 + 90 * number}" y="{top - 24}" width="10" height="10" '
            f'fill="{colour}"/>' + _text(left + 104 + 90 * number, top - 14, arm)
        )
    return parts


def mask_picture() -> str:
    """Draw what sees what when three questions about one picture are packed, and packed as a tree.

    The squares come from the masks that attention uses.
    """
    picture, questions = 14, (4, 3, 5)
    alone = [Segment(picture + length) for length in questions]
    tree = [Segment(picture), *(Segment(length, 0, picture) for length in questions)]
    names = [f"question {place + 1}" for place in range(len(questions))]
    parts = [_text(10, 22, "Three questions about one picture, in one row", "h")]
    cell, x, top = 5.5, 144.0, 78.0
    for title, segments, labels in (
        ("--packing", alone, [f"picture, {name}" for name in names]),
        ("--packing --share_images", tree, ["picture", *names]),
    ):
        total = sum(segment.length for segment in segments)
        parts.append(_text(x, top - 34, title, "h"))
        parts.append(_text(x, top - 14, f"{total} tokens, {total - sum(questions)} of the picture"))
        start = 0
        for segment, label in zip(segments, labels, strict=True):
            middle = top + (start + segment.length / 2) * cell + 4
            parts.append(_text(x - 8, middle, label, anchor="end"))
            parts += _squares(segment, start, picture, x, top, cell)
            start += segment.length
        parts.append(
            f'<rect x="{x - 1}" y="{top - 1}" width="{total * cell + 1}" '
            f'height="{total * cell + 1}" fill="none" stroke="#999"/>'
        )
        x += total * cell + 110
    bottom = top + sum(segment.length for segment in alone) * cell + 26
    parts.append(
        _text(144, bottom, "A line of squares is what one token sees; orange: its picture.")
    )
    return _svg(780, bottom + 14, "The mask of shared pictures", parts)


def _squares(
    segment: Segment, start: int, picture: int, x: float, top: float, cell: float
) -> list[str]:
    """Draw what the tokens of one segment see; questions see the picture in another colour."""
    prefix = segment.prefix_length
    mask = segment_mask(segment, None, torch.device("cpu"))
    if mask is None:
        mask = torch.ones(segment.length, segment.length, dtype=torch.bool).tril()
    paths = {_COLOURS["ours"]: "", _COLOURS["hf"]: ""}
    side = cell - 1
    for query, key in mask.nonzero().tolist():
        place = segment.prefix_start + key if key < prefix else start + key - prefix
        looks = key < picture <= prefix + query
        paths[_COLOURS["hf" if looks else "ours"]] += (
            f"M{x + place * cell:g} {top + (start + query) * cell:g}h{side}v{side}h-{side}z"
        )
    return [f'<path d="{path}" fill="{colour}"/>' for colour, path in paths.items()]


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{words}</text>'


def _svg(width: int, height: float, title: str, parts: list[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" '
        f'width="{width}" height="{height:.0f}" role="img" aria-label="{title}">'
        f"{_STYLE}{''.join(parts)}</svg>\n"
    )
