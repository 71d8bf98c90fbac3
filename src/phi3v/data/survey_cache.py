"""Keeps a survey beside its data file, so that the next start of a run costs nothing."""

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from phi3v.data.beside import hidden_places
from phi3v.data.inspection import Finding, InspectionSettings
from phi3v.data.records import RawRecords
from phi3v.data.survey import Survey
from phi3v.model.processing import Phi3VProcessor

_VERSION = 3


def survey_key(source: RawRecords, processor: Phi3VProcessor, settings: InspectionSettings) -> str:
    """Name all that a survey depends on: the records, the settings, the processor.

    Media files do not belong to it: one that vanishes later is met when the record is read.
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


def load_survey(path: str | Path, key: str) -> Survey | None:
    """Read the survey of a data file.

    Args:
        path: The data file.
        key: See `survey_key`.

    Returns:
        None if there is none, it is damaged, or it is of something else.
    """
    for place in hidden_places(Path(path), "survey"):
        survey = _read(place, key)
        if survey is not None:
            return survey
    return None


def _read(place: Path, key: str) -> Survey | None:
    try:
        with np.load(place, allow_pickle=False) as stored:
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


def save_survey(path: str | Path, key: str, survey: Survey) -> None:
    """Keep a survey; that it can be written nowhere is no error: the next start takes longer."""
    findings = json.dumps([asdict(one) for one in survey.findings])
    arrays = {name: getattr(survey, name) for name in _array_names()}
    beside, *elsewhere = hidden_places(Path(path), "survey")
    for place in (beside, *elsewhere):
        try:
            # A data set of the hub has no folder that anything could stand beside.
            if place is not beside:
                place.parent.mkdir(parents=True, exist_ok=True)
            # Several runs may start at once: each writes its own file and moves it into place.
            handle, aside = tempfile.mkstemp(dir=place.parent, suffix=".phi3v-survey")
        except OSError:
            continue
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, key=np.array(key), findings=np.array(findings), **arrays)
            os.replace(aside, place)
            return
        except OSError:
            Path(aside).unlink(missing_ok=True)


def _array_names() -> list[str]:
    return [field.name for field in fields(Survey) if field.name != "findings"]
