"""Reads what a run and its evaluations have left in their folders."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from phi3v.evaluation.store import SAMPLES_FILE, SCORES_FILE

RUN_FILE = "run.yaml"
EVALUATIONS = "evaluation"
STEPS = "answers"


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        folder: Its folder.
        found: Content of scores.json.
        samples: Lines of samples.jsonl.
    """

    folder: Path
    found: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class RunFiles:
    """What is known of a run; what is not there is empty.

    Attributes:
        folder: Output folder of the run.
        flags: The flags as given.
        parts: Rows of the table of parts.
        history: The trainer's log.
        data: Numbers about the records.
        summary: What the run took.
        plan: What was predicted.
        evaluations: Of the result.
        steps: Evaluations while it trained, by step.
    """

    folder: Path
    flags: Mapping[str, Any]
    parts: Sequence[Mapping[str, Any]] = ()
    history: Sequence[Mapping[str, Any]] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    evaluations: Sequence[Evaluation] = ()
    steps: Sequence[Evaluation] = ()

    def command(self) -> list[str]:
        """Write the command that gives this run again: its name, then each flag with its values."""
        lines = ["phi3v train"]
        for name, value in self.flags.items():
            values = value if isinstance(value, list) else [value]
            lines.append(shlex.join([f"--{name}", *map(str, values)]))
        return lines


def read_run(folder: Path, evaluations: Sequence[Path] = ()) -> RunFiles:
    """Read a run.

    Args:
        folder: Output folder of ``phi3v train``.
        evaluations: Folders of ``phi3v evaluate``; those in the run's own folder if none are given.

    Raises:
        FileNotFoundError: The folder holds no run, or a folder no evaluation.
        ValueError: A file of it is damaged.
    """
    file = folder / RUN_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} holds no run of phi3v train ({RUN_FILE} is missing); name its --output_dir"
        )
    try:
        flags = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    found = sorted(path.parent for path in (folder / EVALUATIONS).glob(f"*/{SCORES_FILE}"))
    steps = sorted(path.parent for path in (folder / STEPS).glob(f"step-*/{SCORES_FILE}"))
    return RunFiles(
        folder=folder,
        flags=flags if isinstance(flags, dict) else {},
        parts=_read(folder / "parts.json", []),
        history=_read(folder / "trainer_state.json", {}).get("log_history", []),
        data=_read(folder / "data.json", {}),
        summary=_read(folder / "summary.json", {}),
        plan=_read(folder / "plan.json", {}),
        evaluations=[read_evaluation(path) for path in evaluations or found],
        steps=[read_evaluation(path) for path in steps],
    )


def read_evaluation(folder: Path) -> Evaluation:
    """Read a finished evaluation.

    Raises:
        FileNotFoundError: The folder holds none.
        ValueError: A file of it is damaged.
    """
    if not (folder / SCORES_FILE).is_file():
        raise FileNotFoundError(
            f"{folder} holds no finished evaluation ({SCORES_FILE} is missing); run phi3v evaluate"
        )
    path = folder / SAMPLES_FILE
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        samples = [json.loads(line) for line in lines if line]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}; evaluate again") from None
    return Evaluation(folder, _read(folder / SCORES_FILE, {}), samples)


def _read(path: Path, absent: Any) -> Any:
    if not path.is_file():
        return absent
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; remove it, or write it anew") from None
    if not isinstance(found, type(absent)):
        raise ValueError(f"{path} is damaged: it holds another kind of JSON than expected")
    return found


def before_and_after(steps: Sequence[Evaluation]) -> Evaluation | None:
    """Join the first and the last evaluation of a run into one of base and model.

    Returns:
        The joined one; the only one if there is one; None without any.
    """
    if len(steps) < 2:
        return steps[0] if steps else None
    first, last = steps[0], steps[-1]
    earlier = {str(one["id"]): one for one in first.samples}
    samples = [
        {
            **one,
            "base_answer": earlier[str(one["id"])]["answer"],
            "base_scores": earlier[str(one["id"])]["scores"],
        }
        if str(one["id"]) in earlier
        else one
        for one in last.samples
    ]
    scores = {"base": first.found["scores"]["model"], "model": last.found["scores"]["model"]}
    return Evaluation(last.folder, {**last.found, "scores": scores}, samples)
