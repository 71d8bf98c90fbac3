"""Answers that are scored while a run trains: shown in the log and in TensorBoard."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers.integrations import TensorBoardCallback

from phi3v.data.answered import ShownAnswer

LONGEST_SHOWN = 200


def show_answers(
    step: int, scores: dict[str, float], answers: Sequence[ShownAnswer], callbacks: Sequence[Any]
) -> None:
    """Print scores and a few answers, and hand answers and pictures to TensorBoard if it listens.

    Args:
        step: Training steps so far.
        scores: By name of metric.
        answers: What to show.
        callbacks: Those of the trainer.
    """
    lines = [f"step {step}: " + ", ".join(f"{name} {v:.4f}" for name, v in scores.items())]
    for one in answers:
        lines += [
            f"  {_short(one.question)}",
            f"    expected {_short(' | '.join(dict.fromkeys(one.references)))}",
            f"    answered {_short(one.answer) or '(nothing)'}",
        ]
    tqdm.write("\n".join(lines))
    for callback in callbacks:
        writer = getattr(callback, "tb_writer", None)
        if isinstance(callback, TensorBoardCallback) and writer is not None:
            for number, one in enumerate(answers, start=1):
                _write(writer, f"answers/{number}", one, step)


def _write(writer: Any, tag: str, one: ShownAnswer, step: int) -> None:
    # Four spaces make a code block of Markdown, in which nothing is markup.
    texts = {
        "Question": one.question,
        "Expected": " | ".join(dict.fromkeys(one.references)),
        "Answered": one.answer,
    }
    blocks = (
        f"{name}:\n\n" + "\n".join(f"    {line}" for line in text.splitlines() or [""])
        for name, text in texts.items()
    )
    writer.add_text(tag, "\n\n".join(blocks), step)
    if one.picture is not None:
        writer.add_image(f"{tag}/picture", np.asarray(one.picture), step, dataformats="HWC")


def _short(text: str) -> str:
    """Bring a text of strangers onto one harmless line."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= LONGEST_SHOWN else line[: LONGEST_SHOWN - 1] + "…"
