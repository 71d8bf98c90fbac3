"""Rules of the output folder: nothing of the user's is lost, no run is resumed unasked."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from phi3v.data.locking import ProcessLock
from phi3v.data.processes import decided_by_first
from phi3v.model.durable import MANIFEST, find_damage, is_sealed, write_text
from phi3v.training.checkpoints import (
    STATE_FILE,
    UNFINISHED,
    checkpoints_of,
    finish_unfinished,
    newest_complete,
)
from phi3v.training.flags import RunArguments, as_yaml
from phi3v.training.parts import Row

logger = logging.getLogger(__name__)

RUN_FILE = "run.yaml"
PARTS_FILE = "parts.json"
DATA_FILE = "data.json"
SUMMARY_FILE = "summary.json"
PLAN_FILE = "plan.json"
LOCK_FILE = ".phi3v-lock"
_RESULTS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    PARTS_FILE,
    DATA_FILE,
    SUMMARY_FILE,
    PLAN_FILE,
    STATE_FILE,
    MANIFEST,
)
_YES, _NO = ("true", "yes", "1"), ("false", "no", "0")


@contextmanager
def kept_to_one_run(folder: Path) -> Iterator[None]:
    """Keep other runs out of an output folder for a while; all processes of a run enter together.

    The kernel frees the lock of a process that dies, so a killed run keeps nobody out.

    Raises:
        FileExistsError: Another run is in it.
    """
    lock = ProcessLock(folder / LOCK_FILE)
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    decided_by_first(lambda: _keep_to_one_run(lock))
    try:
        yield
    finally:
        lock.release()
        for path in absent:
            # Made for the lock alone, where the run came to nothing.
            with suppress(OSError):
                path.rmdir()


def _keep_to_one_run(lock: ProcessLock) -> None:
    folder = lock.path.parent
    if folder.exists() and not folder.is_dir():
        return  # refused with its reason later, as what cannot be written
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_free = lock.take()
    except OSError as error:
        if not isinstance(error, PermissionError) and error.errno != errno.EROFS:
            logger.warning(
                "%s cannot be locked (%s): a second run in it would not be noticed", folder, error
            )
        return
    if not is_free:
        raise FileExistsError(
            f"--output_dir {folder}: another run is writing there, on this machine or one that "
            "shares the folder; let it end, or name another folder"
        )


def choose_checkpoint(folder: Path, resume: str | None, *, overwrite: bool) -> str | None:
    """Decide where a run starts.

    Args:
        folder: Output folder of the run.
        resume: ``--resume_from_checkpoint``: a folder, ``true`` for the newest one that is whole,
            ``auto`` for the same or a new start where there is none, or None.
        overwrite: ``--overwrite_output_dir``.

    Returns:
        The checkpoint folder to resume from, or None to start anew.

    Raises:
        FileExistsError: The folder is not empty and the flags do not say what to do with it.
        FileNotFoundError: There is no checkpoint to resume from.
        OSError: The folder cannot be written.
        ValueError: Two flags contradict each other, or the checkpoint is damaged.
    """
    wants_resume = resume is not None and resume.lower() not in _NO
    if wants_resume and overwrite:
        raise ValueError("--resume_from_checkpoint contradicts --overwrite_output_dir")
    _check_writable(folder)
    if resume is not None and wants_resume:
        if resume.lower() in (*_YES, "auto"):
            newest = _newest(folder)
        else:
            newest = _named(folder, Path(resume))
        if newest is not None:
            return str(newest)
        if resume.lower() != "auto":
            raise FileNotFoundError(
                f"--resume_from_checkpoint {resume}: there is no checkpoint-* in {folder} that is "
                "whole; leave the flag out to start anew"
            )
        overwrite = is_without_result(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"--output_dir {folder} is a file; name a folder")
    if not folder.is_dir() or {*os.listdir(folder)} <= {LOCK_FILE} or overwrite:
        return None
    if (folder / RUN_FILE).is_file():
        raise FileExistsError(
            f"--output_dir {folder} holds an earlier run; go on with it by "
            "--resume_from_checkpoint true, replace it by --overwrite_output_dir True, or name "
            "another folder"
        )
    raise FileExistsError(
        f"--output_dir {folder} is not empty and holds no run of phi3v; name another folder, or "
        "write into it by --overwrite_output_dir True"
    )


def _check_writable(folder: Path) -> None:
    """Refuse before anything is loaded what would fail at the first checkpoint."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if there.is_dir() and not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(
            f"--output_dir {folder} cannot be written: {there} is read-only for you; name another "
            "folder"
        )


def is_without_result(folder: Path) -> bool:
    """Say whether a folder holds a run of ours that was stopped before it had any result."""
    results = set(_RESULTS) - {PARTS_FILE, DATA_FILE, PLAN_FILE}
    return (folder / RUN_FILE).is_file() and not any(
        path for pattern in results for path in folder.glob(pattern)
    )


def _newest(folder: Path) -> Path | None:
    if not folder.is_dir():
        return None
    finish_unfinished(folder)
    newest, passed = newest_complete(folder)
    for reason in passed:
        logger.warning("not resumed from %s", reason)
    return newest


def _named(folder: Path, checkpoint: Path) -> Path:
    flag = f"--resume_from_checkpoint {checkpoint}"
    if not (checkpoint / STATE_FILE).is_file():
        raise FileNotFoundError(
            f"{flag}: no {STATE_FILE} there; name a checkpoint-* folder, or true for the newest "
            "one of --output_dir"
        )
    if not is_sealed(checkpoint):
        logger.warning("%s: it has no %s, so nobody can say if it is whole", flag, MANIFEST)
    elif damage := find_damage(checkpoint, digests=True):
        raise ValueError(
            f"{flag} is damaged: {damage}; name another one, or true for the newest that is whole"
        )
    newer = [path.name for path in checkpoints_of(folder) if path.parent == checkpoint.parent]
    if newer and newer[-1] != checkpoint.name:
        logger.warning("%s: newer ones stay until this run reaches them: %s", flag, newer[-1])
    return checkpoint


def clear_earlier_run(folder: Path) -> list[str]:
    """Remove the results and checkpoints of an earlier run of ours; other files stay.

    Returns:
        Names of what was removed.
    """
    if not (folder / RUN_FILE).is_file():
        return []
    results = {path for pattern in _RESULTS for path in folder.glob(pattern)}
    checkpoints = {path for path in folder.glob("checkpoint-*") if path.is_dir()}
    # What --eval_generate has left.
    checkpoints |= {path for path in folder.glob("answers") if path.is_dir()}
    checkpoints |= {path for path in [folder / UNFINISHED] if path.is_dir()}
    for path in results:
        path.unlink()
    for path in checkpoints:
        shutil.rmtree(path)
    return sorted(path.name for path in results | checkpoints)


def write_run_files(
    folder: Path, arguments: RunArguments, rows: list[Row], data: Mapping[str, Any]
) -> None:
    """Write the arguments and the table of parts; they mark the folder as a run of ours.

    Args:
        folder: Output folder.
        arguments: As given.
        rows: The table of parts.
        data: Numbers about the training and the validation records.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / DATA_FILE, json.dumps(data, indent=2) + "\n")
    table = json.dumps([asdict(row) for row in rows], indent=2)
    write_text(folder / PARTS_FILE, table + "\n")
    write_text(folder / RUN_FILE, as_yaml(arguments))
