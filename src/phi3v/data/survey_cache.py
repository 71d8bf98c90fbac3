"""Keeps a clean survey beside its data file, so that the next start of a run costs nothing."""

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from phi3v.data.inspection import Finding, InspectionSettings
from phi3v.data.records import RawRecords
from phi3v.data.survey import Survey
from phi3v.model.processing import Phi3VProcessor

_VERSION = 2


def survey_key(source: RawRecords, processor: Phi3VProcessor, settings: InspectionSettings) -> str:
    """Name all that a survey depends on: the records, the settings, the processor.

    Media files do not belong to it; one that vanishes later is met by ``--on_bad_record``.
    """
    images = processor.image_processor
    parts = [
        _VERSION,
        source.fingerprint(),
        asdict(settings),
        [images.num_crops, images.crop_size, images.patch_size],
        hashlib.sha256(processor.tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def cache_path(data_path: str | Path) -> Path:
    """Say where the survey of a data file is kept."""
    path = Path(data_path)
    return path.with_name(f".{path.name}.survey.npz")


def load_survey(path: Path, key: str) -> Survey | None:
    """Read a survey; None if there is none, it is damaged, or it is of something else."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                return None
            arrays = {name: stored[name] for name in _array_names()}
            findings = json.loads(str(stored["findings"]))
    except Exception:  # damaged archives raise nearly anything; the survey is then made anew
        return None
    return Survey(
        **arrays,
        findings=[Finding(**{**one, "messages": tuple(one["messages"])}) for one in findings],
    )


def save_survey(path: Path, key: str, survey: Survey) -> None:
    """Keep a survey without bad records; others are made again, as their faults get repaired.

    A folder that cannot be written to is no error: the next start takes longer.
    """
    if any(one.is_bad and one.reason != "too_long" for one in survey.findings):
        return
    findings = json.dumps([asdict(one) for one in survey.findings])
    arrays = {name: getattr(survey, name) for name in _array_names()}
    try:
        # Several runs may start at once: each writes its own file and moves it into place.
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".npz")
        with os.fdopen(handle, "wb") as file:
            np.savez(file, key=np.array(key), findings=np.array(findings), **arrays)
        os.replace(temporary, path)
    except OSError:
        return


def _array_names() -> list[str]:
    return [field.name for field in fields(Survey) if field.name != "findings"]
