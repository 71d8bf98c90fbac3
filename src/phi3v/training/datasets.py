"""Training and validation records of a run: checked before the first step, once for all ranks."""

import logging
from pathlib import Path
from typing import Any

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils.logging import tqdm

from phi3v.data.dataset import SupervisedDataset
from phi3v.data.inspection import InspectionSettings
from phi3v.data.joined import MixedRecords
from phi3v.data.options import MediaOptions
from phi3v.data.processes import decided_by_first
from phi3v.data.statistics import overview
from phi3v.data.streaming import StreamedExamples, StreamPosition
from phi3v.data.survey import Survey, survey_records
from phi3v.data.survey_cache import load_survey, save_survey, survey_key
from phi3v.model.processing import Phi3VProcessor
from phi3v.training.arguments import DataArguments, Phi3VTrainingArguments

logger = logging.getLogger(__name__)

_MOST_SHOWN = 20


def build_datasets(
    data: DataArguments,
    processor: Phi3VProcessor,
    *,
    resumed: bool = False,
    seed: int = 0,
    position: StreamPosition | None = None,
) -> tuple[SupervisedDataset | StreamedExamples, SupervisedDataset | None]:
    """Read and check the training and the validation records; say what is left out.

    Args:
        data: Where they are, and what to do with bad ones.
        processor: Text and image processor of the checkpoint.
        resumed: Leave out the same records as the run that is gone on with, also if some have been
            repaired since.
        seed: With ``--streaming``: decides the order.
        position: With ``--streaming``: who reads, and from where on.

    Raises:
        FileNotFoundError: A data file or a folder is missing.
        ValueError: Records are bad; the first of them are listed.
    """
    train_set: SupervisedDataset | StreamedExamples
    if data.streaming:
        train_set = StreamedExamples(
            data.data_path,
            processor,
            data.image_folder,
            data.max_seq_length,
            shuffle_buffer=data.shuffle_buffer,
            seed=seed,
            position=position,
            max_num_frames=data.max_num_frames,
            media_options=media_options(data),
            on_bad_record=data.on_bad_record,
        )
    else:
        train_set = _build("training", data.data_path, data.image_folder, data, processor, resumed)
    if not data.eval_data_path:
        return train_set, None
    folder = data.eval_image_folder or data.image_folder
    return train_set, _build("validation", data.eval_data_path, folder, data, processor, resumed)


def stream_position(training: Phi3VTrainingArguments, checkpoint: str | None) -> StreamPosition:
    """Say where in the stream this process begins, and keep the library from skipping batches.

    The library would read and decode all that it then throws away.
    """
    num_batches = 0
    if checkpoint is not None and not training.ignore_data_skip:
        state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        num_batches = state.global_step * training.gradient_accumulation_steps
    training.ignore_data_skip = True
    return StreamPosition(
        training.process_index, training.world_size, training.train_batch_size, num_batches
    )


def overviews(
    train_set: SupervisedDataset | StreamedExamples, eval_set: SupervisedDataset | None
) -> dict[str, Any]:
    """Collect the numbers about the records of both sets, where they were surveyed."""
    sets = {"training": train_set, "validation": eval_set}
    return {name: one.overview for name, one in sets.items() if one and one.overview}


def media_options(data: DataArguments) -> MediaOptions:
    """Collect the flags about media."""
    return MediaOptions(
        exif_orientation=data.exif_orientation,
        max_image_pixels=data.max_image_pixels,
        allow_urls=data.allow_urls,
        allow_absolute_paths=data.allow_absolute_paths,
        jpeg_draft=data.jpeg_draft,
    )


def _build(
    kind: str,
    path: str,
    folder: str | None,
    data: DataArguments,
    processor: Phi3VProcessor,
    resumed: bool,
) -> SupervisedDataset:
    options = media_options(data)
    dataset = SupervisedDataset(
        path,
        processor,
        folder,
        data.max_seq_length,
        max_num_frames=data.max_num_frames,
        media_options=options,
        on_bad_record=data.on_bad_record,
    )
    if isinstance(dataset.raw, MixedRecords):
        shares = ", ".join(f"{name} {count:,}" for name, count in dataset.raw.shares)
        logger.warning("%s records: %s", kind, shares)
    if data.check_data:
        settings = InspectionSettings(data.max_seq_length, data.max_num_frames, options)
        accept_bad = resumed and data.on_bad_record == "skip"
        survey = decided_by_first(lambda: find_survey(dataset, settings, accept_bad=accept_bad))
        _apply(dataset, survey, kind, data)
        dataset.overview = overview(survey)
    return dataset


def find_survey(
    dataset: SupervisedDataset, settings: InspectionSettings, *, accept_bad: bool = False
) -> Survey:
    """Take the survey that is kept beside the data file, or inspect all records.

    Args:
        dataset: Gives records and processor.
        settings: What to look for.
        accept_bad: Take a kept survey although it holds bad records; otherwise these are looked at
            again, as their faults get repaired.
    """
    key = survey_key(dataset.raw, dataset.processor, settings)
    kept = load_survey(dataset.data_path, key)
    if kept is not None and (accept_bad or not kept.faults):
        return kept
    # Without a terminal, the bar is left out.
    with tqdm(total=len(dataset.raw), desc="checking", unit="record", disable=None) as bar:
        survey = survey_records(dataset.raw, dataset.processor, settings, progress=bar.update)
    save_survey(dataset.data_path, key, survey)
    return survey


def _apply(dataset: SupervisedDataset, survey: Survey, kind: str, data: DataArguments) -> None:
    left_out = dataset.apply_survey(survey)
    if left_out.num_bad_records > data.max_bad_records:
        raise ValueError(
            f"{dataset.data_path}: {left_out.num_bad_records} records are bad, more than "
            f"--max_bad_records {data.max_bad_records}; phi3v check lists them"
        )
    if left_out.num_bad_records:
        for one in survey.faults[:_MOST_SHOWN]:
            logger.warning("left out: %s", "; ".join(one.messages))
        logger.warning(
            "%d bad %s records are left out; phi3v check lists them", left_out.num_bad_records, kind
        )
    if left_out.num_too_long or left_out.num_turns:
        logger.warning(
            "--max_seq_length %d: %d of the %s records left out, %d shortened by %d turns",
            data.max_seq_length,
            left_out.num_too_long,
            kind,
            left_out.num_shortened,
            left_out.num_turns,
        )
