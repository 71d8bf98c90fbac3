"""The walk of the demo: small here, and once in full for one seed."""

import json
from pathlib import Path

import pytest

from phi3v import load_model
from phi3v.demo.digits import QUESTIONS
from phi3v.demo.page import Score
from phi3v.demo.run import MARK, main, prepare_folder, run
from phi3v.demo.scoring import score


def test_only_an_earlier_demo_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="not from an earlier demo"):
        prepare_folder(tmp_path)
    assert (tmp_path / "thesis.tex").exists()
    target = tmp_path / "demo"
    prepare_folder(target)
    (target / "old.txt").write_text("x")
    prepare_folder(target)
    assert sorted(path.name for path in target.iterdir()) == [MARK, "base"]


def test_the_base_has_never_seen_the_questions_answers(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "demo")
    model = load_model(tmp_path / "demo" / "base")
    assert model.config.crop_size == 112
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000


def test_the_whole_answer_must_match() -> None:
    def record(name: str, answer: str) -> dict:
        turns = [{"from": "human", "value": "<image>\n?"}, {"from": "gpt", "value": answer}]
        return {"id": name, "image": "a.png", "conversations": turns}

    records = [record("a_digit", "7"), record("b_digit", "1"), record("a_parity", "odd")]
    found = score(records, {"a_digit": " 7\n", "b_digit": "17", "a_parity": "odd"})
    assert found == {"which digit": Score(1, 2), "even or odd": Score(1, 1)}


@pytest.mark.slow
def test_a_small_walk_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    flags = ["--output", str(folder), "--num_train", "40", "--num_eval", "20", "--seed", "3"]
    assert main(flags) == 0
    page = (folder / "report.html").read_text()
    printed = capsys.readouterr().out
    for question in QUESTIONS:
        assert question.wordings[0] in page
    assert "phi3v train --model_id" in page
    for row in ("which digit", "even or odd", "greater than 4"):
        (line,) = (line for line in printed.splitlines() if line.startswith(row))
        assert line.count("of 20") == 2
    assert json.loads((folder / "adapter" / "parts.json").read_text())
    assert (folder / "merged" / "model-00001-of-00003.safetensors").is_file()
    assert "eval_0000.png: Which digit is written here?" in printed


@pytest.mark.slow
def test_the_demo_learns_to_read_digits(tmp_path: Path) -> None:
    # Its bar is a mean of 90 over three seeds; one seed may lie a little lower.
    scores = run(tmp_path / "demo", seed=0, num_train=4500, num_eval=500)
    assert scores["which digit"].percent > 88
