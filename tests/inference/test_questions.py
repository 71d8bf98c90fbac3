from pathlib import Path
from typing import Any

import pytest
from tests.data.test_questions import RECORDS, write

from phi3v.data.questions import read_questions
from phi3v.inference.questions import answer_questions, prepare_output
from phi3v.model.processing import Phi3VProcessor
from phi3v.model.settings import GenerationSettings


@pytest.mark.parametrize("batch_size", [2, 8])
def test_batches_give_the_answers_of_single_questions_in_order(
    model: Any, processor: Phi3VProcessor, media_folder: Path, tmp_path: Path, batch_size: int
) -> None:
    questions = read_questions(write(tmp_path / "in", RECORDS), image_folder=media_folder)
    options: Any = {"settings": GenerationSettings(8)}
    single = list(answer_questions(model, processor, questions, **options))
    assert [line["id"] for line in single] == [7, "two", "clip", 3, "open"]
    assert (single[0]["prompt"], single[0]["reference"]) == ("Which colour?", "Grey.")
    batched = answer_questions(model, processor, questions, batch_size=batch_size, **options)
    assert list(batched) == single


def test_a_damaged_picture_names_its_record(
    model: Any, processor: Phi3VProcessor, media_folder: Path, tmp_path: Path
) -> None:
    records = [{"id": "a", "image": "broken.png", "prompt": "What?"}]
    questions = read_questions(write(tmp_path / "in", records), image_folder=media_folder)
    with pytest.raises(ValueError, match=r"record 'a' .*broken.png is not a picture"):
        list(answer_questions(model, processor, questions))


def test_an_existing_output_is_not_touched_unasked(tmp_path: Path) -> None:
    file = write(tmp_path / "out.jsonl", [{"id": 1}])
    with pytest.raises(FileExistsError, match="--resume .*or --overwrite"):
        prepare_output(file, resume=False, overwrite=False)


def test_a_line_that_was_cut_off_is_answered_again(tmp_path: Path) -> None:
    file = write(tmp_path / "out.jsonl", [{"id": 1}, {"id": "b"}])
    whole = file.read_text()
    file.write_text(whole + '{"id": "c", "ans')
    assert prepare_output(file, resume=True, overwrite=False) == {"1", "b"}
    assert file.read_text() == whole


def test_resuming_in_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "out.jsonl", [{"id": 1}, {"name": 2}])
    with pytest.raises(ValueError, match="line 2 is no answer with an 'id'"):
        prepare_output(file, resume=True, overwrite=False)
