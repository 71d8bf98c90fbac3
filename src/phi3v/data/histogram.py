"""Draws how long samples are: as text for the terminal, and as a PNG picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

_BLOCKS = " ▏▎▍▌▋▊▉█"
_NICE = (1, 2, 2.5, 5, 10)


def bins(values: np.ndarray, most: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Count values in at most `most` bins of a round width.

    Where few values lie far above all others, the last bin takes them all and is wider.

    Args:
        values: Numbers, none negative.
        most: Largest number of bins.

    Returns:
        int64 (K + 1,) edges from a multiple of the width on, and int64 (K,) counts; a value on an
        edge counts above it. Without values, one empty bin.
    """
    if not len(values):
        return np.array([0, 1]), np.array([0])
    low, high = int(values.min()), int(values.max())
    usual = int(np.quantile(values, 0.99, method="inverted_cdf"))
    top = usual if high > 2 * usual else high
    if top < high:
        most -= 1
    width, power = 1, 1
    while top // width - low // width + 1 > most:
        nice = next((n * power for n in _NICE if n * power > width and n * power % 1 == 0), None)
        if nice is None:
            power *= 10
        else:
            width = int(nice)
    edges = np.arange(low // width, top // width + 2) * width
    if high >= edges[-1]:
        edges = np.append(edges, high + 1)
    counts, _ = np.histogram(values, np.append(edges[:-1], edges[-1] - 0.5))
    return edges, counts


def draw_text(values: np.ndarray, *, columns: int = 40, ascii_only: bool = False) -> str:
    """Draw a histogram of one line per bin.

    Args:
        values: Numbers.
        columns: Width of the longest bar in characters.
        ascii_only: Use "#" where a terminal shows no block characters.
    """
    edges, counts = bins(values)
    digits = len(f"{edges[-1]:,}")
    lines = []
    for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
        eighths = int(np.ceil(8 * columns * count / max(counts.max(), 1)))
        full, part = divmod(eighths, 8)
        bar = "#" * (full + (part > 0)) if ascii_only else "█" * full + _BLOCKS[part].strip()
        lines.append(f"  {left:>{digits},} - {right - 1:>{digits},}  {bar} {count:,}")
    return "\n".join(lines)


def draw_png(
    values: np.ndarray,
    path: str | Path,
    *,
    title: str,
    axis: str,
    marks: Sequence[tuple[int, str]] = (),
) -> None:
    """Write a histogram as a picture.

    Args:
        values: Numbers.
        path: PNG file to write.
        title: Text above it.
        axis: What the values are.
        marks: Values to mark by a line, with what they are; those outside are left out.
    """
    width, height, margin, bottom = 960, 480, 60, 420
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    edges, counts = bins(values, 48)
    bar = (width - 2 * margin) / len(counts)
    top = max(int(counts.max()), 1)

    def place(value: float) -> float:
        return margin + bar * float(np.interp(value, edges, np.arange(len(edges))))

    draw.text((margin, 12), title, fill="black", font_size=16)
    for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
        high = bottom - (bottom - margin) * count / top
        if count:
            draw.rectangle((place(left) + 1, high, place(right) - 1, bottom), fill="#3b6ea8")
    draw.line((margin, bottom, width - margin, bottom), fill="black")
    for edge in edges[: -1 : max(1, len(edges) // 8)]:
        draw.text((place(edge), bottom + 8), f"{edge:,}", fill="black", anchor="ma", font_size=12)
    draw.text(
        (place(edges[-1]), bottom + 8), f"{edges[-1]:,}", fill="black", anchor="ra", font_size=12
    )
    draw.text((margin - 8, margin), f"{top:,}", fill="black", anchor="rm", font_size=12)
    draw.text((margin - 8, bottom), "0", fill="black", anchor="rm", font_size=12)
    draw.text((width / 2, height - 20), axis, fill="black", anchor="mm", font_size=12)
    for value, name in marks:
        if edges[0] <= value <= edges[-1]:
            draw.line((place(value), margin - 16, place(value), bottom), fill="#c03030", width=2)
            draw.text(
                (place(value) - 4, margin - 20), name, fill="#c03030", anchor="rm", font_size=12
            )
    picture.save(path, "PNG")
