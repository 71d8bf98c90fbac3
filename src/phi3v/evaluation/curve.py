"""Curves of a run as inline SVG."""

import math
from collections.abc import Sequence

from phi3v.evaluation.markup import escape

# Margins leave room for the larger text that the page uses on phones.
WIDTH, HEIGHT = 560, 290
LEFT, RIGHT, TOP, BOTTOM = 104, 14, 14, 60

Points = Sequence[tuple[int, float]]


def curve_svg(points: Points, *, name: str, smooth: bool = False, marks: Points = ()) -> str:
    """Draw values over training steps.

    Args:
        points: (step, value) in the order of the run. Values that are not finite are left out and
            counted below the picture.
        name: What the values are; written at the axis.
        smooth: Draw the running mean as well, and let it stand out.
        marks: (step, value) of a few more values of the same kind, drawn as dots.

    Returns:
        One `<svg>` element with labelled axes and a description in words, or a sentence when there
        is nothing to draw.
    """
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    dots = [(step, value) for step, value in marks if math.isfinite(value)]
    num_lost = len(points) + len(marks) - len(finite) - len(dots)
    note = f'<p class="small">{num_lost} logged values were not finite.</p>' if num_lost else ""
    if not finite:
        return f"<p>No {escape(name)} was logged.</p>{note}"
    steps, values = [step for step, _ in finite], [value for _, value in finite]
    shown = _running_mean(values) if smooth else values
    every = [value for _, value in [*finite, *dots]]
    value_ticks = _ticks(min(0.0, *every), max(every))
    last_step = max(*steps, *(step for step, _ in dots), 1)
    low, high = value_ticks[0], value_ticks[-1]

    def place(step: float, value: float) -> tuple[float, float]:
        x = LEFT + step / last_step * (WIDTH - LEFT - RIGHT)
        return x, HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def line(kind: str, heights: Sequence[float]) -> str:
        pairs = (place(step, value) for step, value in zip(steps, heights, strict=True))
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)
        return f'<polyline class="{kind}" points="{path}"/>'

    parts = [_opening(name, steps, shown, smooth, len(dots))]
    for tick in value_ticks:
        parts.append(_value_tick(tick, place(0, tick)[1]))
    for tick in _ticks(0, last_step):
        if tick <= last_step:
            x = place(tick, low)[0]
            parts.append(
                f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 22}" text-anchor="middle">{tick:g}</text>'
            )
    parts += [line("raw", values)] if smooth else []
    parts.append(line("mean", shown))
    for x, y in (place(step, value) for step, value in dots):
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
    return "".join([*parts, _axis_names(name), "</svg>"]) + note


def _opening(
    name: str, steps: Sequence[int], values: Sequence[float], smooth: bool, num_dots: int
) -> str:
    what = f"the running mean of {name}" if smooth else name
    more = f" {num_dots} values more are marked by dots." if num_dots else ""
    label = (
        f"{what} by training step: from {values[0]:.3g} at step {steps[0]} to {values[-1]:.3g} at "
        f"step {steps[-1]}; least {min(values):.3g}, most {max(values):.3g}.{more}"
    )
    label = label[0].upper() + label[1:]
    return (
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">'
    )


def _value_tick(tick: float, y: float) -> str:
    kind = "grid" if tick else "axis"
    return (
        f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y + 5:.1f}" text-anchor="end">{_short(tick)}</text>'
    )


def _short(value: float) -> str:
    if abs(value) >= 10000:
        return f"{value / 1000:g}k"
    if 0 < abs(value) < 0.01:
        power = math.floor(math.log10(abs(value)) + 1e-9)
        return f"{value / 10.0**power:.3g}e{power}"
    return f"{value:g}"


def _axis_names(name: str) -> str:
    across, down = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    return (
        f'<text x="{across}" y="{HEIGHT - 8}" text-anchor="middle">training step</text>'
        f'<text x="18" y="{down}" text-anchor="middle" '
        f'transform="rotate(-90 18 {down})">{escape(name)}</text>'
    )


def _running_mean(values: Sequence[float]) -> list[float]:
    """Average every value with its neighbours, about a twentieth of the run on each side."""
    reach = len(values) // 20
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _ticks(bottom: float, top: float) -> list[float]:
    """Choose 3 to 8 round values that reach from `bottom`, 0 or less, to at least `top`."""
    span = max(top, 0) - bottom
    if span <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(span))
    distance = next(f * power for f in (0.2, 0.5, 1, 2) if span / (f * power) <= 6)
    first = math.floor(bottom / distance + 1e-9)
    last = math.ceil(max(top, 0) / distance - 1e-9)
    return [float(f"{number * distance:.9g}") for number in range(first, last + 1)]
