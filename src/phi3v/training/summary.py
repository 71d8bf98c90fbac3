"""The last words of a run: what it took, where the result lies, what to do next."""

import json
import platform
import resource
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from phi3v import __version__
from phi3v.model.loading import is_adapter_folder


def peak_memory_gb() -> tuple[str, float]:
    """Return where memory was measured and its peak in GB (1e9 bytes)."""
    if torch.cuda.is_available():
        return "GPU", torch.cuda.max_memory_allocated() / 1e9
    return "main memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(trainer: Any, plan_file: Path) -> dict[str, Any]:
    """Collect what a run took, ready for JSON; the memory is that of this process.

    Args:
        trainer: After its last step.
        plan_file: What was predicted before the first step, if it could be.
    """
    plan = json.loads(plan_file.read_text(encoding="utf-8")) if plan_file.is_file() else {}
    places, real, supervised = trainer.tokens.read()
    where, peak = peak_memory_gb()
    return {
        "steps": trainer.state.global_step,
        "seconds": round(trainer.tokens.seconds, 1),
        "tokens": real,
        "supervised_tokens": supervised,
        "padding": round(1 - real / places, 6) if places else 0.0,
        "peak_memory_gb": round(peak, 3),
        "memory_of": where,
        "predicted_memory_gb": plan.get("peak_memory_gb"),
        "processes": trainer.args.world_size,
        "versions": {
            "phi3v": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": version("peft"),
            "python": platform.python_version(),
        },
    }


def summarize(measured: Mapping[str, Any], folder: Path) -> str:
    """Write the summary of a finished run.

    Args:
        measured: What it took.
        folder: Output folder.

    Returns:
        Lines for the terminal.
    """
    lines = [
        f"steps            {measured['steps']:,}",
        f"time             {measured['seconds']:,.1f} s",
        f"tokens           {measured['tokens']:,}, {measured['supervised_tokens']:,} of them "
        "supervised",
        f"padding          {measured['padding']:.1%} of the places computed",
        f"peak memory      {measured['peak_memory_gb']:.2f} GB ({measured['memory_of']})"
        f"{_predicted(measured)}",
        f"result           {folder}",
        f"next             phi3v generate --model-path {folder} --image-file PICTURE",
    ]
    if is_adapter_folder(folder):
        lines.append(
            f"                 phi3v merge --model-path {folder} --save-model-path {folder}-merged"
        )
    return "\n".join(lines)


def _predicted(measured: Mapping[str, Any]) -> str:
    predicted = measured.get("predicted_memory_gb")
    if predicted is None:
        return ""
    beside = "" if measured["memory_of"] == "GPU" else " for the model; the rest is the libraries'"
    return f", predicted {predicted:.2f} GB{beside}"
