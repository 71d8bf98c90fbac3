import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from phi3v.demo.digits import DIGIT, QUESTIONS, DemoData, is_right, read_tiles, write_dataset
from phi3v.model.crops import CropGrid, plan_crops


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DemoData:
    return write_dataset(tmp_path_factory.mktemp("digits"), 64, 40, seed=3)


def read(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))


def digit_of(record: dict[str, Any]) -> str:
    turns = [turn["value"].removeprefix("<image>\n") for turn in record["conversations"]]
    return next(
        answer
        for question, answer in zip(turns[::2], turns[1::2], strict=True)
        if question in DIGIT.wordings
    )


def test_bundled_pictures_are_balanced() -> None:
    assert [len(tiles) for tiles in read_tiles("train")] == [450] * 10
    assert [len(tiles) for tiles in read_tiles("held_out")] == [50] * 10


def test_no_bundled_picture_is_in_both_splits_or_twice() -> None:
    hashes = [
        hashlib.sha256(tile.tobytes()).hexdigest()
        for tiles in (*read_tiles("train"), *read_tiles("held_out"))
        for tile in tiles
    ]
    assert len(set(hashes)) == len(hashes) == 5000


def test_no_written_held_out_picture_is_trained_on(data: DemoData) -> None:
    def pixels(path: Path) -> set[bytes]:
        return {Image.open(data.image_folder / record["image"]).tobytes() for record in read(path)}

    assert len(pixels(data.train_json)) == 64
    assert len(pixels(data.eval_json)) == 40
    assert not pixels(data.train_json) & pixels(data.eval_json)


def test_written_digits_are_balanced(data: DemoData) -> None:
    counts = Counter(digit_of(record) for record in read(data.train_json))
    assert sorted(counts.values()) == [6] * 6 + [7] * 4
    assert set(Counter(digit_of(record) for record in read(data.eval_json)).values()) == {4}


def test_training_records_are_llava_conversations(data: DemoData) -> None:
    for record in read(data.train_json):
        assert set(record) == {"id", "image", "conversations"}
        speakers = [turn["from"] for turn in record["conversations"]]
        assert speakers == ["human", "gpt"] * len(QUESTIONS)
        values = [turn["value"] for turn in record["conversations"]]
        assert values[0].startswith("<image>\n")
        assert "".join(values).count("<image>") == 1


@pytest.mark.parametrize("name", ["train_json", "eval_other_json"])
def test_answers_agree_with_the_digit(data: DemoData, name: str) -> None:
    path: Path = getattr(data, name)
    digits = {r["image"]: digit_of(r) for r in read(data.train_json) + read(data.eval_json)}
    for record in read(path):
        values = [turn["value"].removeprefix("<image>\n") for turn in record["conversations"]]
        for wording, answer in zip(values[::2], values[1::2], strict=True):
            (question,) = [one for one in QUESTIONS if wording in one.wordings]
            assert answer == question.answer(int(digits[record["image"]]))


@pytest.mark.parametrize(
    ("digit", "answers"),
    [(0, ["0", "even", "no"]), (4, ["4", "even", "no"]), (5, ["5", "odd", "yes"])],
)
def test_answers_of_a_digit(digit: int, answers: list[str]) -> None:
    assert [question.answer(digit) for question in QUESTIONS] == answers


@pytest.mark.parametrize("seed", range(3))
def test_a_picture_keeps_the_digit_of_its_tile(tmp_path: Path, seed: int) -> None:
    data = write_dataset(tmp_path, 20, 20, seed=seed)
    for path, split in ((data.train_json, "train"), (data.eval_json, "held_out")):
        tiles = read_tiles(split)  # type: ignore[arg-type]  # mypy widens the tuple's literals
        for record in read(path):
            picture = Image.open(data.image_folder / record["image"])
            digit = int(digit_of(record))
            assert any(drawn(tile) == picture.tobytes() for tile in tiles[digit])


def drawn(tile: Image.Image) -> bytes:
    return ImageOps.invert(tile).resize((112, 112), Image.Resampling.BICUBIC).tobytes()


def test_every_question_comes_first_in_some_training_record(data: DemoData) -> None:
    first = {
        question.name
        for record in read(data.train_json)
        for question in QUESTIONS
        if record["conversations"][0]["value"].removeprefix("<image>\n") in question.wordings
    }
    assert first == {question.name for question in QUESTIONS}


def test_evaluation_asks_for_the_digit_once_a_picture(data: DemoData) -> None:
    records = read(data.eval_json)
    assert len({record["id"] for record in records}) == len(records) == 40
    assert {record["conversations"][0]["value"] for record in records} == {
        "<image>\n" + DIGIT.wordings[0]
    }
    assert {len(record["conversations"]) for record in records} == {2}


def test_other_questions_have_records_of_their_own(data: DemoData) -> None:
    records = read(data.eval_other_json)
    assert len({record["id"] for record in records}) == len(records) == 80
    assert not {record["id"] for record in records} & {r["id"] for r in read(data.eval_json)}


def test_a_picture_is_one_crop_of_the_tiny_base_without_resizing(data: DemoData) -> None:
    with Image.open(data.image_folder / read(data.train_json)[0]["image"]) as image:
        size = image.size
    plan = plan_crops(*size, num_crops=1, crop_size=112)
    assert (plan.resized_width, plan.resized_height) == size
    assert plan.grid == CropGrid(1, 1)


def test_a_picture_is_dark_ink_on_white_paper(data: DemoData) -> None:
    image = Image.open(data.image_folder / read(data.train_json)[0]["image"])
    assert image.getpixel((0, 0)) == 255
    assert min(image.tobytes()) < 64


def test_the_seed_decides_every_file(tmp_path: Path) -> None:
    def content(folder: str, seed: int) -> list[bytes]:
        write_dataset(tmp_path / folder, 10, 10, seed=seed)
        files = sorted(path for path in (tmp_path / folder).rglob("*") if path.is_file())
        return [path.read_bytes() for path in files]

    assert content("a", 1) == content("b", 1) != content("c", 2)


@pytest.mark.parametrize(("num_train", "num_eval"), [(0, 10), (4501, 10), (10, 0), (10, 501)])
def test_numbers_beyond_the_bundle_are_refused(
    tmp_path: Path, num_train: int, num_eval: int
) -> None:
    with pytest.raises(ValueError, match=r"num_(train|eval) is .*give a number from 1 to"):
        write_dataset(tmp_path, num_train, num_eval)


@pytest.mark.parametrize(
    ("answer", "right"), [("7", True), (" 7\n", True), ("7.", False), ("77", False), ("", False)]
)
def test_the_whole_answer_must_match(answer: str, right: bool) -> None:
    assert is_right(answer, "7") is right
