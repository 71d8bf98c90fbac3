"""What the demo's page shows of a run: samples, the curve, and what is needed to repeat it."""

import json
import platform
import resource
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from phi3v import __version__
from phi3v.demo.digits import QUESTIONS, is_right
from phi3v.demo.page import Sample
from phi3v.demo.scoring import Answers, expected_of, question_of

NUM_SHOWN = 6  # of each question, and of the wrong answers


def gallery(
    records: Sequence[Mapping[str, Any]], before: Answers, after: Answers, image_folder: Path
) -> list[Sample]:
    """Take the first records of each question and the first wrong answers, whatever they are.

    Args:
        records: Held-out records of one question each.
        before: The base model's answers by record id.
        after: The fine-tuned model's answers.
        image_folder: Folder of the pictures.

    Returns:
        At most six samples of each kind; a record that is of two kinds stands once.
    """
    chosen = [
        record
        for question in QUESTIONS
        for record in [r for r in records if r["id"].endswith(f"_{question.name}")][:NUM_SHOWN]
    ]
    chosen += [r for r in records if not is_right(after[r["id"]], expected_of(r))][:NUM_SHOWN]
    return [
        Sample(
            image_path=image_folder / record["image"],
            question=question_of(record).replace("<image>\n", ""),
            expected=expected_of(record),
            before=before[name],
            after=after[name],
        )
        for name, record in {record["id"]: record for record in chosen}.items()
    ]


def loss_curve(history: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Pick (step, loss) from the trainer's log."""
    return [(int(line["step"]), float(line["loss"])) for line in history if "loss" in line]


def cpu_seconds() -> float:
    """Return the CPU time of this process and its children so far."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def facts(flags: Sequence[str], seed: int, adapter_folder: Path) -> dict[str, str]:
    """Say what a reader needs to judge and to repeat the run.

    Args:
        flags: Words after ``phi3v train``.
        seed: Seed of data and training.
        adapter_folder: Output folder of the training.

    Returns:
        Text by its label, in order.
    """
    parts = json.loads((adapter_folder / "parts.json").read_text(encoding="utf-8"))
    total = sum(row["total"] for row in parts)
    return {
        "Base": f"a tiny model of {total:,} parameters that was trained on drawn letters only; it "
        "names letters, so it is no reader of digits at the start",
        "Trained": "; ".join(
            f"{row['part']}: {row['method']}, {row['trainable']:,} of {row['total']:,}"
            for row in parts
        ),
        "Questions": " ".join(question.wordings[0] for question in QUESTIONS),
        "Answers": "generated; right only when the whole answer matches",
        "Samples shown": f"the first {NUM_SHOWN} held-out pictures of each question, and the first "
        f"{NUM_SHOWN} wrong answers",
        "Seed": str(seed),
        "CPU seconds so far": f"{cpu_seconds():.0f}, on {torch.get_num_threads()} thread(s)",
        "Versions": f"phi3v {__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Python {platform.python_version()}",
        # The demo computes on one thread, which decides how sums are rounded.
        "Train command": "OMP_NUM_THREADS=1 phi3v train " + shlex.join(flags),
    }
