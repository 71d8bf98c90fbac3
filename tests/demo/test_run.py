"""The walk of the demo: small here, and once in full for one seed."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from phi3v import load_model
from phi3v.demo.digits import QUESTIONS, DemoData
from phi3v.demo.page import Score
from phi3v.demo.run import MARK, main, prepare_folder, run, train_flags
from phi3v.demo.scoring import score
from phi3v.training.flags import parse_arguments
from phi3v.training.train import main as train_main


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


def test_the_base_is_tiny_and_has_small_crops(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "demo")
    model = load_model(tmp_path / "demo" / "base")
    assert model.config.crop_size == 112
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000


@pytest.mark.parametrize(
    "flags", [["--num_train", "4501"], ["--num_eval", "0"], ["--seed", "-1"], ["--seed", "x"]]
)
def test_a_bad_number_leaves_an_earlier_demo_alone(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "demo"
    prepare_folder(target)
    (target / "old.txt").write_text("x")
    with pytest.raises(SystemExit):
        main(["--output", str(target), *flags])
    assert "is no number from" in capsys.readouterr().err
    assert (target / "old.txt").exists()


def test_the_printed_training_command_keeps_odd_paths_whole(tmp_path: Path) -> None:
    data = DemoData(*(tmp_path / "my demo" / name for name in ("t", "e", "o", "images")))
    flags = train_flags(tmp_path / "my demo", data, seed=5)
    assert shlex.split(shlex.join(flags)) == flags
    arguments, messages = parse_arguments(flags)
    assert not messages
    assert arguments.data.data_path == str(data.train_json)
    # The recipe is the seed's default mode: adapters on the language model, the rest in full.
    assert arguments.lora.lora_enable
    assert not arguments.model.freeze_vision_tower
    assert arguments.model.tune_img_projector
    assert not arguments.lora.vision_lora


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
    captured = capsys.readouterr()
    printed = captured.out
    for question in QUESTIONS:
        assert question.wordings[0] in page
    assert "phi3v train --model_id" in page
    for row in ("which digit", "even or odd", "greater than 4"):
        (line,) = (line for line in printed.splitlines() if line.startswith(row))
        counts = re.findall(r"\d+ of 20", line)
        assert len(counts) == 2
        assert all(count in page for count in counts)
    assert json.loads((folder / "adapter" / "parts.json").read_text())
    assert (folder / "merged" / "model-00001-of-00003.safetensors").is_file()
    assert "eval_0000.png: Which digit is written here?" in printed
    # The command on the page can be given again, as it stands.
    (line,) = (line for line in printed.splitlines() if line.startswith("3. "))
    again = shlex.split(line.split("phi3v train ")[1])
    before = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert train_main(again) == 0
    after = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_the_demo_learns_to_read_digits(tmp_path: Path) -> None:
    # Its bar is a mean of 90 over three seeds; one seed may lie a little lower.
    scores = run(tmp_path / "demo", seed=0, num_train=4500, num_eval=500)
    assert scores["which digit"].percent > 88
