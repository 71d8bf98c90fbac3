"""Writes what an evaluation found: files for programs, a table for people."""

import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from phi3v import __version__
from phi3v.evaluation.results import MODEL, Result
from phi3v.evaluation.store import SAMPLES_FILE, SCORES_FILE, write_json
from phi3v.evaluation.table import confusion_table, table, throughput_line


def versions() -> dict[str, str]:
    """Name the versions that numbers depend on."""
    return {
        "phi3v": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def write_result(folder: Path, result: Result, about: Mapping[str, Any]) -> None:
    """Write scores.json and samples.jsonl.

    Args:
        folder: Output folder.
        result: What was found.
        about: What was evaluated; ready for JSON.
    """
    lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in result.samples)
    path = folder / SAMPLES_FILE
    path.write_text(lines, encoding="utf-8", errors="backslashreplace")
    content: dict[str, Any] = {
        **about,
        "scores": {
            name: {metric: score.as_json() for metric, score in own.items()}
            for name, own in result.scores.items()
        },
    }
    if result.gains:
        content["gains"] = {metric: gain.as_json() for metric, gain in result.gains.items()}
    if result.confusion:
        content["confusion"] = result.confusion
    # Last: a folder with scores is a finished one.
    write_json(folder / SCORES_FILE, content | {"versions": versions()})


def print_result(result: Result, speed: Mapping[str, Mapping[str, float]], folder: Path) -> None:
    """Print the table of scores, the confusion matrix, and where to look next."""
    lines = ["", table(result)]
    if MODEL in result.confusion:
        lines += ["", confusion_table(result.confusion[MODEL])]
    lines.append("")
    lines += [throughput_line(name, numbers) for name, numbers in speed.items() if numbers]
    lines.append(f"written to {folder}: {SCORES_FILE}, {SAMPLES_FILE}")
    text = "\n".join(lines)
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), flush=True)
