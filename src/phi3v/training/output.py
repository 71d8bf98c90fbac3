"""Rules of the output folder: nothing of the user's is lost, no run is resumed unasked."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from transformers.trainer_utils import get_last_checkpoint

from phi3v.training.flags import RunArguments, as_yaml
from phi3v.training.parts import Row

RUN_FILE = "run.yaml"
PARTS_FILE = "parts.json"
_RESULTS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    PARTS_FILE,
    "trainer_state.json",
)


def choose_checkpoint(folder: Path, resume: str | None, *, overwrite: bool) -> str | None:
    """Decide where a run starts.

    Args:
        folder: Output folder of the run.
        resume: ``--resume_from_checkpoint``: a folder, ``true`` for the newest one, or None.
        overwrite: ``--overwrite_output_dir``.

    Returns:
        The checkpoint folder to resume from, or None to start anew.

    Raises:
        FileExistsError: The folder is not empty and the flags do not say what to do with it.
        FileNotFoundError: There is no checkpoint to resume from.
        ValueError: Two flags contradict each other.
    """
    wants_resume = resume is not None and resume.lower() not in ("false", "no", "0")
    if wants_resume and overwrite:
        raise ValueError("--resume_from_checkpoint contradicts --overwrite_output_dir")
    if wants_resume:
        assert resume is not None
        return _checkpoint_to_resume(folder, resume)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"--output_dir {folder} is a file; name a folder")
    if not folder.is_dir() or not any(folder.iterdir()) or overwrite:
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


def _checkpoint_to_resume(folder: Path, resume: str) -> str:
    if resume.lower() in ("true", "yes", "1"):
        newest = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        if newest is None:
            raise FileNotFoundError(
                f"--resume_from_checkpoint true: there is no checkpoint-* in {folder}; leave the "
                "flag out to start anew"
            )
        return newest
    if not (Path(resume) / "trainer_state.json").is_file():
        raise FileNotFoundError(
            f"--resume_from_checkpoint {resume}: no trainer_state.json there; name a checkpoint-* "
            "folder, or true for the newest one of --output_dir"
        )
    return resume


def clear_earlier_run(folder: Path) -> list[str]:
    """Remove the results and checkpoints of an earlier run of ours; other files stay.

    Returns:
        Names of what was removed.
    """
    if not (folder / RUN_FILE).is_file():
        return []
    results = {path for pattern in _RESULTS for path in folder.glob(pattern)}
    checkpoints = {path for path in folder.glob("checkpoint-*") if path.is_dir()}
    for path in results:
        path.unlink()
    for path in checkpoints:
        shutil.rmtree(path)
    return sorted(path.name for path in results | checkpoints)


def write_run_files(folder: Path, arguments: RunArguments, rows: list[Row]) -> None:
    """Write the arguments and the table of parts; they mark the folder as a run of ours."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RUN_FILE).write_text(as_yaml(arguments), encoding="utf-8")
    table = json.dumps([asdict(row) for row in rows], indent=2)
    (folder / PARTS_FILE).write_text(table + "\n", encoding="utf-8")
