import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

from phi3v.data.beside import hidden_places
from phi3v.data.collator import Collator
from phi3v.data.dataset import LeftOut, SupervisedDataset, UnusableRecord
from phi3v.data.inspection import InspectionSettings
from phi3v.data.survey import Survey, survey_records
from phi3v.data.survey_cache import load_survey, save_survey, survey_key
from phi3v.model.processing import Phi3VProcessor


def raw(*values: str, **media: Any) -> dict[str, Any]:
    roles = ("human", "gpt")
    turns = [{"from": roles[k % 2], "value": value} for k, value in enumerate(values)]
    return {"conversations": turns, **media}


MIXED = [
    raw("What?", "That."),
    raw("<image>\nWhat?", "A bus.", image="wide.png"),
    raw("<image>\n<image>\nSame?", "No.", image=["tall.png", "square.png"]),
    raw("<video>\nWhat?", "A walk.", video="clip.mkv"),
    raw("A?", "B.", "<image>C?", "D.", image="square.png"),
]


@pytest.fixture
def data_path(tmp_path: Path) -> Path:
    return write(tmp_path, MIXED)


def survey(dataset: SupervisedDataset) -> Survey:
    settings = InspectionSettings(dataset.max_seq_length)
    return survey_records(dataset.raw, dataset.processor, settings)


def write(folder: Path, records: list[Any]) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps(records))
    return path


def test_records_become_examples_in_file_order(
    data_path: Path, small_processor: Phi3VProcessor, image_folder: Path
) -> None:
    dataset = SupervisedDataset(data_path, small_processor, image_folder)
    assert len(dataset) == 5
    assert [len(dataset[position]["image_sizes"]) for position in range(5)] == [0, 1, 2, 3, 1]


def test_lengths_are_those_of_the_examples(
    data_path: Path, small_processor: Phi3VProcessor, image_folder: Path
) -> None:
    dataset = SupervisedDataset(data_path, small_processor, image_folder, max_num_frames=2)
    encoded = [len(dataset[position]["input_ids"]) for position in range(5)]
    assert dataset.lengths() == encoded


def test_measured_sizes_are_those_of_a_survey(
    data_path: Path, small_processor: Phi3VProcessor, image_folder: Path
) -> None:
    measured, surveyed = (
        SupervisedDataset(data_path, small_processor, image_folder) for _ in range(2)
    )
    measured.measure()
    surveyed.apply_survey(survey(surveyed))
    assert measured.lengths() == surveyed.lengths()
    assert measured.num_crops is not None and surveyed.num_crops is not None
    assert measured.num_crops.tolist() == surveyed.num_crops.tolist()
    assert measured.num_labels is not None and surveyed.num_labels is not None
    assert measured.num_labels.tolist() == surveyed.num_labels.tolist()


def test_fault_22_records_beyond_the_limit_are_dropped_and_counted(
    data_path: Path, small_processor: Phi3VProcessor, image_folder: Path
) -> None:
    lengths = SupervisedDataset(data_path, small_processor, image_folder).lengths()
    limit = lengths[4] - 1  # cuts the last record short, and is less than the others with media
    dataset = SupervisedDataset(data_path, small_processor, image_folder, limit)
    long = [position for position, length in enumerate(dataset.lengths()) if length > limit]
    assert long == [position for position in range(4) if lengths[position] > limit]
    with pytest.raises(UnusableRecord, match=rf"record '{long[0]}'"):
        dataset[long[0]]
    counts = dataset.apply_survey(survey(dataset))
    assert counts == LeftOut(0, num_too_long=len(long), num_shortened=1, num_turns=2)
    assert long
    kept = [dataset.record(position).where.index for position in range(len(dataset))]
    assert kept == [index for index in range(5) if index not in long]
    assert max(dataset.lengths()) <= limit


def test_a_limit_below_every_record_is_refused(
    data_path: Path, small_processor: Phi3VProcessor, image_folder: Path
) -> None:
    dataset = SupervisedDataset(data_path, small_processor, image_folder, 3)
    with pytest.raises(
        ValueError, match="no record of .* is good and short enough: .*max_seq_length 3"
    ):
        dataset.apply_survey(survey(dataset))


def test_all_bad_records_are_counted_in_one_error(
    tmp_path: Path, small_processor: Phi3VProcessor, image_folder: Path
) -> None:
    path = write(tmp_path, [7, *MIXED, {}, *[raw("<image>", "a")] * 10])
    dataset = SupervisedDataset(path, small_processor, image_folder)
    with pytest.raises(ValueError) as error:
        dataset.apply_survey(survey(dataset))
    lines = str(error.value).splitlines()
    assert lines[0].endswith("data.json: 12 of 17 records are bad")
    assert lines[1] == (
        "  record '0' (index 0 of data.json): is a number; expected an object with "
        "'conversations' or 'messages'"
    )
    assert len(lines) == 14 and "phi3v check" in lines[-1]


def test_missing_image_folder_is_named(data_path: Path, small_processor: Phi3VProcessor) -> None:
    with pytest.raises(FileNotFoundError, match="image folder no/where does not exist"):
        SupervisedDataset(data_path, small_processor, "no/where")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_come_out_of_a_loader(
    data_path: Path, small_processor: Phi3VProcessor, image_folder: Path, num_workers: int
) -> None:
    dataset = SupervisedDataset(data_path, small_processor, image_folder, max_num_frames=2)
    loader = DataLoader(
        dataset, 5, collate_fn=Collator(0, small_processor.image_token_id), num_workers=num_workers
    )
    (batch,) = loader
    assert batch["document_lengths"][:, 0].tolist() == dataset.lengths()
    assert len(batch["image_sizes"]) == 6
    places = (batch["input_ids"] == small_processor.image_token_id).sum()
    tokens = [
        small_processor.image_processor.num_image_tokens(w, h) for h, w in batch["image_sizes"]
    ]
    assert places == sum(tokens)


def test_an_error_survives_the_way_out_of_a_loader_worker() -> None:
    # The loader makes an error of the same class, with the traceback as its message.
    try:
        try:
            raise ValueError("record '0': inner")
        except ValueError as cause:
            raise UnusableRecord("record '0': gone: a.png") from cause
    except UnusableRecord as error:
        caught = ExceptionWrapper((UnusableRecord, error, error.__traceback__))
    with pytest.raises(UnusableRecord, match=r"^record '0': gone: a\.png$"):
        caught.reraise()


def test_a_vanished_picture_is_an_error_or_a_place_that_trains_nothing(
    tmp_path: Path, small_processor: Phi3VProcessor
) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "gone.png")
    path = write(tmp_path, [raw("a", "b"), raw("<image>", "b", image="gone.png")])
    datasets = {
        policy: SupervisedDataset(path, small_processor, tmp_path, on_bad_record=policy)
        for policy in ("error", "skip")
    }
    (tmp_path / "gone.png").unlink()
    with pytest.raises(UnusableRecord, match=r"record '1' .*gone.png does not exist"):
        datasets["error"][1]
    assert len(datasets["skip"]) == 2
    for padding_free in (False, True):
        collator = Collator(0, small_processor.image_token_id, padding_free=padding_free)
        batch = collator([datasets["skip"][1], datasets["skip"][0]])
        assert batch["num_bad_records"] == 1
        alone = collator([datasets["skip"][0]])
        assert (batch["labels"] != -100).sum() == (alone["labels"] != -100).sum()


def test_a_kept_survey_says_what_a_new_one_says(
    data_path: Path, small_processor: Phi3VProcessor, image_folder: Path
) -> None:
    for limit in (300, 131072):
        dataset, other = (
            SupervisedDataset(data_path, small_processor, image_folder, limit) for _ in range(2)
        )
        settings = InspectionSettings(limit)
        made = survey(other)
        key = survey_key(other.raw, small_processor, settings)
        save_survey(data_path, key, made)
        stored = load_survey(data_path, key)
        assert stored is not None and load_survey(data_path, "other") is None
        assert dataset.apply_survey(stored) == other.apply_survey(made)
        assert dataset.lengths() == other.lengths()
        assert dataset.lengths() == [len(example["input_ids"]) for example in dataset]
    hidden_places(data_path, "survey")[0].write_bytes(b"damaged")
    assert load_survey(data_path, key) is None
