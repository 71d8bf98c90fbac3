"""The checkpoints of a run: they appear whole, are found again, and old ones are removed.

While one is written it stands in ``unfinished/`` of the output folder. What is found there later is
of a process that was stopped: a sealed checkpoint gets its place, all else is removed.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from phi3v.model.durable import MANIFEST, find_damage, is_sealed, put_in_place, remove_folder, seal

UNFINISHED = "unfinished"
STATE_FILE = "trainer_state.json"
_RESULT = "result"
_NAME = re.compile(r"checkpoint-(\d+)")
# Less room than this in bytes is none.
_FULL = 1 << 20
# A folder without one of these is no model, so they come last.
_CONFIGS = ("config.json", "adapter_config.json")


def number_of(checkpoint: Path) -> int:
    """Return the step at which a checkpoint was written."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


def checkpoints_of(folder: Path) -> list[Path]:
    """List the checkpoints by their steps; a jump of the clock may alter the times of files."""
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir()]
    return sorted((path for path in found if _NAME.fullmatch(path.name)), key=number_of)


def finish_unfinished(folder: Path) -> None:
    """Clear up what a stopped process left: sealed checkpoints get their place."""
    unfinished = folder / UNFINISHED
    if not unfinished.is_dir():
        return
    for checkpoint in checkpoints_of(unfinished):
        if is_sealed(checkpoint) and find_damage(checkpoint, digests=True) is None:
            put_in_place(checkpoint, folder / checkpoint.name, unfinished)
    shutil.rmtree(unfinished)


def newest_complete(folder: Path) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint that is whole.

    Returns:
        The checkpoint, if there is one, and why each newer one was passed over.
    """
    passed: list[str] = []
    for checkpoint in reversed(checkpoints_of(folder)):
        damage = _damage(checkpoint)
        if damage is None:
            return checkpoint, passed
        passed.append(f"{checkpoint.name}: {damage}")
    return None, passed


def _damage(checkpoint: Path) -> str | None:
    if not is_sealed(checkpoint):
        return f"no {MANIFEST}, so it may be half-written; name it to resume from it anyway"
    return find_damage(checkpoint, digests=True)


def start_writing(folder: Path, step: int) -> None:
    """Make room for a checkpoint; on the process that writes for all."""
    _start(folder / UNFINISHED / f"checkpoint-{step}")


def start_result(folder: Path) -> None:
    """Make room for the result; on the process that writes for all."""
    _start(result_aside(folder))


def _start(aside: Path) -> None:
    # The output folder is not made again: where a mount has gone, its place is somewhere else.
    aside.parent.mkdir(exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)


def finish_writing(folder: Path, step: int, *, limit: int | None, best: str | None) -> Path:
    """Seal the checkpoint that all processes have written, give it its place, remove old ones.

    Args:
        folder: Output folder.
        step: Step of the checkpoint.
        limit: ``--save_total_limit``.
        best: The best checkpoint so far, which stays.

    Returns:
        The checkpoint.
    """
    unfinished, checkpoint = folder / UNFINISHED, folder / f"checkpoint-{step}"
    seal(unfinished / checkpoint.name)
    put_in_place(unfinished / checkpoint.name, checkpoint, unfinished)
    kept = {checkpoint.name} | ({Path(best).name} if best else set())
    if limit is not None and limit > 0:
        found = checkpoints_of(folder)
        surplus = len(found) - max(limit, len(kept))
        for old in [path for path in found if path.name not in kept][: max(surplus, 0)]:
            remove_folder(old, unfinished)
    shutil.rmtree(unfinished)
    return checkpoint


def result_aside(folder: Path) -> Path:
    """Name the folder that the result is written to first."""
    return folder / UNFINISHED / _RESULT


def finish_result(folder: Path) -> None:
    """Move the written result into the output folder, which is a model only when all is there."""
    aside = result_aside(folder)
    seal(aside)
    for name in (MANIFEST, *_CONFIGS):
        (folder / name).unlink(missing_ok=True)
    names = sorted(
        (path.name for path in aside.iterdir()),
        key=lambda name: (name == MANIFEST, name in _CONFIGS),
    )
    for name in names:
        (aside / name).replace(folder / name)
    shutil.rmtree(folder / UNFINISHED)


@contextmanager
def explained(folder: Path, aside: Path) -> Iterator[None]:
    """Turn the many ways in which libraries fail to write into one message.

    Args:
        folder: Output folder.
        aside: What is being written; removed after a failure, as a full disk needs the room.

    Raises:
        OSError: The folder cannot be written; the message says what is left of the run.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_sealed(aside):
            shutil.rmtree(aside, ignore_errors=True)
        reason = _reason(error, folder)
        raise OSError(f"{folder / aside.name} could not be written: {reason}") from error


def _reason(error: Exception, folder: Path) -> str:
    cause = str(error).strip().splitlines()[0]
    try:
        free = shutil.disk_usage(folder).free
    except OSError as missing:
        return f"{cause}; {folder} is not there any more ({missing.strerror})"
    if free < _FULL:
        cause = f"the disk is full ({cause})"
    last = [path for path in checkpoints_of(folder) if is_sealed(path)]
    if not last:
        return f"{cause}. There is no earlier checkpoint"
    return (
        f"{cause}. {last[-1].name} is whole: once the folder can be written again, "
        "--resume_from_checkpoint true goes on from it"
    )
