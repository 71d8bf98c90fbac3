"""The loss curve as an inline SVG, for the demo's page."""

import math
from collections.abc import Sequence

# Margins leave room for the larger text that the page uses on phones.
WIDTH, HEIGHT = 560, 290
LEFT, RIGHT, TOP, BOTTOM = 74, 14, 14, 60


def loss_svg(points: Sequence[tuple[int, float]]) -> str:
    """Draw loss over training step, with its running mean.

    Args:
        points: (step, loss) in the order of the run. Values that are not finite are left out
            and counted below the picture.

    Returns:
        One `<svg>` element with labelled axes and a description in words, or a sentence
        when there is nothing to draw.
    """
    finite = [(step, loss) for step, loss in points if math.isfinite(loss)]
    num_lost = len(points) - len(finite)
    note = f'<p class="small">{num_lost} logged losses were not finite.</p>' if num_lost else ""
    if not finite:
        return f"<p>No loss was logged.</p>{note}"
    steps, losses = [step for step, _ in finite], [loss for _, loss in finite]
    means = _running_mean(losses)
    step_ticks, loss_ticks = _ticks(max(steps)), _ticks(max(losses))
    last_step, top_loss = max(*steps, 1), loss_ticks[-1]

    def place(step: float, loss: float) -> tuple[float, float]:
        x = LEFT + step / last_step * (WIDTH - LEFT - RIGHT)
        return x, HEIGHT - BOTTOM - loss / top_loss * (HEIGHT - TOP - BOTTOM)

    def line(kind: str, values: Sequence[float]) -> str:
        pairs = (place(step, value) for step, value in zip(steps, values, strict=True))
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)
        return f'<polyline class="{kind}" points="{path}"/>'

    floor = HEIGHT - BOTTOM
    parts = [_opening(steps, means)]
    for tick in loss_ticks:
        _, y = place(0, tick)
        kind = "grid" if tick else "axis"
        parts.append(
            f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 8}" y="{y + 5:.1f}" text-anchor="end">{tick:g}</text>'
        )
    for tick in step_ticks:
        if tick <= last_step:
            x, _ = place(tick, 0)
            parts.append(f'<text x="{x:.1f}" y="{floor + 22}" text-anchor="middle">{tick:g}</text>')
    parts += [line("raw", losses), line("mean", means)]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">training step</text>'
        f'<text x="18" y="{(TOP + floor) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 18 {(TOP + floor) / 2})">loss per answer token</text></svg>'
    )
    return "".join(parts) + note


def _opening(steps: Sequence[int], means: Sequence[float]) -> str:
    label = (
        f"Training loss by step: the running mean goes from {means[0]:.3g} at step {steps[0]} "
        f"to {means[-1]:.3g} at step {steps[-1]}."
    )
    return f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'


def _running_mean(values: Sequence[float]) -> list[float]:
    """Average every value with its neighbours, about a twentieth of the run on each side."""
    reach = len(values) // 20
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _ticks(top: float) -> list[float]:
    """Choose 3 to 7 round values from 0 up to at least `top`."""
    if top <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(top))
    distance = next(f * power for f in (0.2, 0.5, 1, 2) if top / (f * power) <= 6)
    return [round(i * distance, 12) for i in range(math.ceil(top / distance - 1e-9) + 1)]
