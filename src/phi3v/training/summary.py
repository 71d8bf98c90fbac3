"""The last words of a run: what it took, where the result lies, what to do next."""

import resource
from pathlib import Path
from typing import Any

import torch

from phi3v.model.loading import is_adapter_folder


def peak_memory_gb() -> tuple[str, float]:
    """Return where memory was measured and its peak in GB (1e9 bytes)."""
    if torch.cuda.is_available():
        return "GPU", torch.cuda.max_memory_allocated() / 1e9
    return "main memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def summarize(trainer: Any, folder: Path) -> str:
    """Write the summary of a finished run.

    Args:
        trainer: The trainer after its last step.
        folder: Output folder.

    Returns:
        Lines for the terminal; counts are those of this process.
    """
    places, real, supervised = trainer.tokens.read()
    where, peak = peak_memory_gb()
    padding = 1 - real / places if places else 0.0
    lines = [
        f"steps            {trainer.state.global_step:,}",
        f"time             {trainer.tokens.seconds:,.1f} s",
        f"tokens           {real:,}, {supervised:,} of them supervised",
        f"padding          {padding:.1%} of the places computed",
        f"peak memory      {peak:.2f} GB ({where})",
        f"result           {folder}",
        f"next             phi3v generate --model-path {folder} --image-file PICTURE",
    ]
    if is_adapter_folder(folder):
        lines.append(
            f"                 phi3v merge --model-path {folder} --save-model-path {folder}-merged"
        )
    return "\n".join(lines)
