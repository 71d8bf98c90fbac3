import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.data.conversations import CONVERSATIONS, encode, in_folder, record_of
from tests.golden_cases import case, tensors

from phi3v.data.encoding import IGNORE_INDEX, Example, lay_out
from phi3v.data.media import load_image, sample_frames
from phi3v.data.records import Place, Record, parse_record
from phi3v.model.processing import Phi3VProcessor


def pictures_of(record: Record, image_folder: Path) -> list[list[Image.Image]]:
    """The pictures behind every turn, opened without the code under test."""
    return [
        [
            picture
            for media in turn.media
            for picture in (
                [load_image(media.path, image_folder)]
                if media.kind == "image"
                else sample_frames(media.path, 2, image_folder=image_folder)
            )
        ]
        for turn in record.turns
    ]


def published_messages(record: Record) -> list[dict[str, str]]:
    """Messages with numbered tags, written without the code under test."""
    messages, number = [], 0
    for turn in record.turns:
        text = turn.text
        for media in turn.media:
            first, number = number + 1, number + (1 if media.kind == "image" else 2)
            tags = [f"<|image_{k}|>" for k in range(first, number + 1)]
            # Published tags have their number already.
            text = text.replace(f"<{media.kind}>", "\n".join(tags), 1)
        messages.append({"role": turn.role, "content": text})
    return messages


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_every_prompt_has_the_ids_that_the_processor_gives_at_inference(
    name: str, processor: Phi3VProcessor, image_folder: Path
) -> None:
    record = record_of(**CONVERSATIONS[name])
    example = encode(record, processor, image_folder)
    messages, pictures = published_messages(record), pictures_of(record, image_folder)
    for number, turn in enumerate(record.turns):
        if turn.role != "user":
            continue
        prompt = processor.apply_chat_template(messages[: number + 1], add_generation_prompt=True)
        flat = [picture for turn_pictures in pictures[: number + 1] for picture in turn_pictures]
        inputs = processor(prompt, flat or None, return_tensors="pt", pixel_format="compact")
        ids = inputs["input_ids"][0]
        assert example["input_ids"][: len(ids)].tolist() == ids.tolist()
        assert example["labels"][len(ids)] != IGNORE_INDEX  # the answer starts right here
        assert example["labels"][len(ids) - 1] == IGNORE_INDEX
    if flat:
        assert torch.equal(example["pixel_values"], inputs["pixel_values"])
        assert example["image_sizes"] == [tuple(size) for size in inputs["image_sizes"].tolist()]
    else:
        assert "pixel_values" not in example and example["image_sizes"] == []


def labelled_runs(example: Example) -> list[list[int]]:
    runs: list[list[int]] = [[]]
    for label in example["labels"].tolist():
        if label != IGNORE_INDEX:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_labels_are_the_answers_with_their_end_and_one_end_of_text(
    name: str, processor: Phi3VProcessor, image_folder: Path
) -> None:
    record = record_of(**CONVERSATIONS[name])
    example = encode(record, processor, image_folder)
    answers = [turn.text for turn in record.turns if turn.role == "assistant"]
    *runs, final = labelled_runs(example)
    decoded = [processor.tokenizer.decode(run) for run in runs]
    # <|assistant|> swallows the whitespace to its right.
    expected = [answer.lstrip() + "<|end|>" for answer in answers]
    if name == "special_tokens_in_answer":
        # The tokenizer begins every stretch behind a special token with a space.
        expected = ["It is <|end|>  , <|user|> \n.<|end|>"]
    assert decoded == expected
    assert final == [processor.tokenizer.eos_token_id]
    labels, ids = example["labels"], example["input_ids"]
    assert (labels[labels != IGNORE_INDEX] == ids[labels != IGNORE_INDEX]).all()
    assert labels.shape == ids.shape and labels.dtype == ids.dtype == torch.int64


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_layout_knows_the_length_and_the_pictures_without_pixels(
    name: str, processor: Phi3VProcessor, image_folder: Path
) -> None:
    record = record_of(**CONVERSATIONS[name])
    layout = lay_out(in_folder(record, image_folder), processor, 131072, max_num_frames=2)
    example = encode(record, processor, image_folder)
    assert layout.input_ids == example["input_ids"].tolist()
    places = (example["input_ids"] == processor.image_token_id).sum()
    assert sum(layout.image_token_counts) == places


def test_fault_3_a_bos_stands_once_at_the_start_and_once_behind_every_image(
    processor: Phi3VProcessor, image_folder: Path
) -> None:
    bos = processor.tokenizer.bos_token_id
    for name, count in {"one_turn": 1, "image": 2, "image_in_later_turn": 3}.items():
        example = encode(record_of(**CONVERSATIONS[name]), processor, image_folder)
        assert (example["input_ids"] == bos).sum() == count


def test_fault_4_answers_stay_answers_behind_a_system_turn(
    processor: Phi3VProcessor, image_folder: Path
) -> None:
    record = record_of(["Q one", "A one", "Q two", "A two"], system="S")
    *runs, _ = labelled_runs(encode(record, processor, image_folder))
    assert [processor.tokenizer.decode(run) for run in runs] == ["A one<|end|>", "A two<|end|>"]


def test_seed_rows_differ_from_ours_in_the_first_bos_and_the_labelled_newlines_only(
    golden: Path, published_processor: Phi3VProcessor
) -> None:
    item, stored = case(golden, "upstream_sft"), tensors(golden, "upstream_sft")
    for row in item["items"]:
        record = parse_record(row["record"], Place("data.json", 0))
        example = encode(record, published_processor, golden / "images")
        ids, labels = stored[f"{row['key']}/input_ids"], stored[f"{row['key']}/labels"]
        places = ids < 0
        ids = torch.where(places, published_processor.image_token_id, ids)
        assert ids[0] == 1 and example["input_ids"].tolist() == ids[1:].tolist()
        # The seed also teaches the newline behind <|end|>, which is 29871, 13.
        for place in (ids == 32007).nonzero().flatten().tolist():
            labels[place + 1 : place + 3] = IGNORE_INDEX
        assert example["labels"].tolist() == labels[1:].tolist()


SEED_RECORDS = [
    {
        "id": "000000033471",
        "image": "wide.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat are the colors of the bus in the image?"},
            {"from": "gpt", "value": "The bus in the image is white and red."},
            {"from": "human", "value": "What feature can be seen on the back of the bus?"},
            {"from": "gpt", "value": "The back of the bus features an advertisement."},
        ],
    },
    {
        "id": "000000033471",
        "image": ["wide.png", "tall.png"],
        "conversations": [
            {"from": "human", "value": "<image>\n<image>\nIs the camera's view different?"},
            {"from": "gpt", "value": "Yes, it is different."},
        ],
    },
    {
        "id": "sample1",
        "video": "clip.mkv",
        "conversations": [
            {"from": "human", "value": "<video>\nWhat is going on in this video?"},
            {"from": "gpt", "value": "A man is walking down the road."},
        ],
    },
]


@pytest.mark.parametrize(("raw", "num_pictures"), list(zip(SEED_RECORDS, (1, 2, 3), strict=True)))
def test_the_seeds_example_records_work(
    raw: dict[str, Any], num_pictures: int, small_processor: Phi3VProcessor, image_folder: Path
) -> None:
    record = parse_record(json.loads(json.dumps(raw)), Place("data.json", 0))
    example = encode(record, small_processor, image_folder, max_num_frames=10)
    assert len(example["image_sizes"]) == num_pictures
    assert example["pixel_values"].dtype == torch.uint8


@pytest.mark.parametrize(
    ("media", "error", "message"),
    [
        ({"image": "none.png"}, FileNotFoundError, "none.png does not exist in the image folder"),
        ({"image": "text.png"}, ValueError, "text.png is not a picture"),
        ({"image": "cut.png"}, ValueError, "cut.png is damaged or truncated"),
        ({"image": "strip.png"}, ValueError, "strip.png: "),
        (
            {"video": "text.png"},
            ValueError,
            "text.png (is not a readable video|holds no video frames)",
        ),
    ],
)
def test_fault_21_bad_media_are_named_with_their_record(
    small_processor: Phi3VProcessor,
    tmp_path: Path,
    media: dict[str, str],
    error: type[Exception],
    message: str,
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    Image.effect_noise((300, 300), 60).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:20000])
    Image.new("RGB", (5000, 1)).save(tmp_path / "strip.png")
    tag = "<image>" if "image" in media else "<video>"
    with pytest.raises(error, match=rf"record 'a17' \(index 16 of data.json\): .*{message}"):
        encode(record_of([tag, "a"], **media), small_processor, tmp_path)


def test_picture_that_is_larger_than_its_header_says_is_refused(
    small_processor: Phi3VProcessor,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copy(image_folder / "wide.png", tmp_path)
    monkeypatch.setattr("phi3v.data.layout.image_size", lambda *_: (64, 64))
    with pytest.raises(ValueError, match="wide.png was decoded at 300x100, another size than"):
        encode(record_of(["<image>", "a"], image="wide.png"), small_processor, tmp_path)
