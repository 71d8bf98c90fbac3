import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.evaluation.conftest import RECORDS, read_lines, write_lines
from tests.training.launching import TORCHRUN, launch

from phi3v import cli
from phi3v.evaluation import answering
from phi3v.evaluation import evaluate as command
from phi3v.evaluation.metrics import compute
from phi3v.evaluation.samples import Sample
from phi3v.evaluation.store import AnswerStore, read_predictions
from phi3v.model.answers import generate_answers

Evaluate = Callable[..., dict[str, Any]]


def listed(reference: str | list[str]) -> list[str]:
    return reference if isinstance(reference, list) else [reference]


def test_every_question_is_answered_and_scored(evaluate: Evaluate, tmp_path: Path) -> None:
    found = evaluate("--metrics", "exact_match", "token_f1")
    samples = found["samples"]
    assert [one["id"] for one in samples] == ["a", "b", "c", "d", "e"]
    assert samples[0]["reference"] == ["a strip", "noise"]
    assert samples[3]["prompt"] == "Which colour?"
    assert set(samples[0]["scores"]) == {"exact_match", "token_f1"}
    # The scores in the file are those of the answers in the file.
    rescored = compute(
        ["token_f1"],
        [
            Sample(
                one["id"],
                tuple(
                    one["reference"] if isinstance(one["reference"], list) else [one["reference"]]
                ),
                one["answer"],
            )
            for one in samples
        ],
    )
    score = found["scores"]["model"]["token_f1"]
    assert score["score"] == pytest.approx(rescored["token_f1"].score, abs=1e-6)
    assert score["low"] <= score["score"] <= score["high"]
    assert found["throughput"]["model"]["samples"] == 5
    assert found["versions"]["phi3v"]


def test_answers_are_those_of_phi3v_generate(
    evaluate: Evaluate, tiny_folder: Path, media_folder: Path, data_file: Path, tmp_path: Path
) -> None:
    samples = evaluate("--metrics", "anls")["samples"]
    out = tmp_path / "generated.jsonl"
    words = ["--model-path", str(tiny_folder), "--input", str(data_file), "--output", str(out)]
    words += ["--image-folder", str(media_folder), "--max-new-tokens", "6"]
    assert cli.main(["generate", *words]) == 0
    assert [one["answer"] for one in read_lines(out)] == [one["answer"] for one in samples]


def test_generated_answers_can_be_scored_without_a_model(
    evaluate: Evaluate, tmp_path: Path
) -> None:
    answers = ["noise", "2", "nothing", "Grey.", "yes"]
    file = write_lines(
        tmp_path / "answers.jsonl",
        [{"id": r["id"], "answer": a} for r, a in zip(RECORDS, answers, strict=True)],
    )
    found = evaluate("--predictions", str(file), "--metrics", "exact_match", model=None)
    assert found["scores"]["model"]["exact_match"]["score"] == 4 / 5
    assert found["throughput"] == {}


def test_predictions_that_do_not_fit_are_refused(evaluate: Evaluate, tmp_path: Path) -> None:
    file = write_lines(
        tmp_path / "answers.jsonl", [{"id": "a", "answer": "x"}, {"id": "z", "answer": ""}]
    )
    with pytest.raises(ValueError, match="4 of 5 questions have no answer, first 'b'; .* 'z'"):
        evaluate("--predictions", str(file), model=None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no json", "line 2 is no prediction"),
        ('{"id": "b"}', "line 2 is no prediction"),
        ('{"id": "b", "answer": 3}', "line 2 is no prediction"),
        ('{"id": "a", "answer": ""}', "line 2 answers 'a' a second time"),
    ],
)
def test_faulty_predictions_name_their_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text('{"id": "a", "answer": "x"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        read_predictions(file)


def test_base_and_adapter_are_compared_on_one_copy_of_the_weights(
    evaluate: Evaluate, adapter_folder: Path
) -> None:
    alone = evaluate("--metrics", "anls")
    words = ("--metrics", "anls", "--compare-base", "--overwrite")
    both = evaluate(*words, model=adapter_folder)
    base = [one["answer"] for one in alone["samples"]]
    assert alone["scores"].keys() == {"model"}
    assert [one["base_answer"] for one in both["samples"]] == base
    assert [one["answer"] for one in both["samples"]] != base
    gain = both["gains"]["anls"]["score"]
    scores = both["scores"]
    assert gain == pytest.approx(scores["model"]["anls"]["score"] - scores["base"]["anls"]["score"])


def test_the_samples_of_another_evaluation_can_be_the_base(
    evaluate: Evaluate, adapter_folder: Path, tmp_path: Path
) -> None:
    evaluate("--metrics", "anls")
    samples = tmp_path / "out" / "samples.jsonl"
    base = [one["answer"] for one in read_lines(samples)]
    kept = samples.rename(tmp_path / "before.jsonl")
    words = ("--base-predictions", str(kept), "--overwrite", "--metrics", "anls")
    found = evaluate(*words, model=adapter_folder)
    assert [one["base_answer"] for one in found["samples"]] == base


def test_a_killed_run_goes_on_where_it_was(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    def counts(model: Any, processor: Any, conversations: Any, settings: Any) -> Any:
        asked.append(len(conversations))
        return generate_answers(model, processor, conversations, settings)

    def dies_after_two_batches(*args: Any) -> Any:
        if len(asked) == 2:
            raise KeyboardInterrupt
        return counts(*args)

    with monkeypatch.context() as patch:
        patch.setattr(answering, "generate_answers", dies_after_two_batches)
        with pytest.raises(KeyboardInterrupt):
            evaluate("--metrics", "anls")
    capsys.readouterr()
    monkeypatch.setattr(answering, "generate_answers", counts)
    found = evaluate("--metrics", "anls")
    assert asked == [2, 2, 1]
    assert len(found["samples"]) == 5
    assert "4 answers of an earlier start are kept" in capsys.readouterr().out
    # Other metrics need no answers.
    evaluate("--metrics", "exact_match")
    assert asked == [2, 2, 1]


def test_a_line_that_was_cut_off_is_answered_again(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "out")
    store.prepare({"a": 1}, overwrite=False)
    store.append(0, [{"id": "a"}, {"id": "b\u2028"}])
    store.append(3, [{"id": "c"}])
    with (tmp_path / "out" / "answers-3.jsonl").open("a") as file:
        file.write('{"id": "d", "ans')
    assert store.prepare({"a": 1}, overwrite=False) == 3
    assert store.read().keys() == {"a", "b\u2028", "c"}


def test_answers_of_other_settings_are_not_mixed_in(evaluate: Evaluate, tmp_path: Path) -> None:
    evaluate("--metrics", "anls")
    with pytest.raises(FileExistsError, match="max_new_tokens was 6, is 3.*--overwrite"):
        evaluate("--metrics", "anls", "--max-new-tokens", "3")
    evaluate("--metrics", "anls", "--max-new-tokens", "3", "--overwrite")
    kept = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert kept["max_new_tokens"] == 3


def test_changed_data_or_weights_are_other_settings(
    evaluate: Evaluate, data_file: Path, tmp_path: Path
) -> None:
    evaluate("--metrics", "anls")
    write_lines(data_file, [*RECORDS, {"prompt": "More?", "reference": "no"}])
    with pytest.raises(FileExistsError, match="data was"):
        evaluate("--metrics", "anls")


def test_a_folder_of_something_else_is_left_alone(evaluate: Evaluate, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no evaluation"):
        evaluate("--overwrite")


def test_every_turn_can_be_asked(evaluate: Evaluate) -> None:
    samples = evaluate("--turns", "all", "--metrics", "anls")["samples"]
    names = [one["id"] for one in samples]
    assert names == ["a", "b", "c", "d#1", "d#2", "e"]
    assert [one["reference"] for one in samples if one["id"][0] == "d"] == ["Noise.", "Grey."]


def test_a_limit_draws_by_the_seed(evaluate: Evaluate) -> None:
    first = evaluate("--limit", "2", "--metrics", "anls")["samples"]
    other = evaluate("--limit", "2", "--metrics", "anls", "--seed", "4", "--overwrite")["samples"]
    assert len(first) == 2
    assert [one["id"] for one in first] != [one["id"] for one in other]


def test_records_of_the_same_id_are_told_apart(evaluate: Evaluate, data_file: Path) -> None:
    write_lines(data_file, [{"id": "x", "prompt": p, "reference": p} for p in "abc"])
    names = [one["id"] for one in evaluate("--metrics", "anls")["samples"]]
    assert names == ["x@0", "x@1", "x@2"]


def test_auto_says_why(evaluate: Evaluate, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate()
    out = capsys.readouterr().out
    assert "metrics: exact_match, anls, token_f1" in out
    assert "because references have 1.3 words on average" in out


def test_the_table_fits_80_columns(
    evaluate: Evaluate, adapter_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--compare-base", "--metrics", *("relaxed_accuracy", "bleu", "chrf", "cider")]
    evaluate(*words, model=adapter_folder)
    lines = [line for line in capsys.readouterr().out.splitlines() if str(tmp_path) not in line]
    assert any("relaxed_accuracy" in line and "[" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_the_gallery_holds_small_pictures(evaluate: Evaluate, tmp_path: Path) -> None:
    samples = evaluate("--metrics", "anls")["samples"]
    clip = next(one for one in samples if one["id"] == "c")
    assert len(clip["pictures"]) == min(3, clip["num_pictures"]) > 1
    for name in clip["pictures"]:
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.format == "JPEG" and max(picture.size) <= 320


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metrics", "rougel"], "unknown metric 'rougel'"),
        (["--metrics", "auto", "anls"], "--metrics auto stands alone"),
        (["--limit", "0"], "--limit is 0"),
        (["--compare-base"], "is no adapter folder"),
        (["--seed", "-1"], "--seed is -1"),
        (["--metrics", "box_iou"], "sample 'a': the reference 'a strip' is no box"),
        (["--predictions", "none.jsonl"], "--predictions contradicts --model-path"),
    ],
)
def test_mistakes_are_told(evaluate: Evaluate, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(*words)


def test_an_empty_data_set_is_refused(evaluate: Evaluate, data_file: Path) -> None:
    data_file.write_text("")
    with pytest.raises(ValueError, match="the file is empty"):
        evaluate()


def test_questions_without_answers_are_refused(evaluate: Evaluate, data_file: Path) -> None:
    write_lines(data_file, [{"id": "q", "prompt": "Is it?"}])
    with pytest.raises(ValueError, match="record 'q' .* has no right answer"):
        evaluate()


def test_the_output_lies_beside_the_checkpoint(tmp_path: Path) -> None:
    words = ["--model-path", str(tmp_path), "--data-path", "data/val.jsonl"]
    flags = command.build_parser().parse_args(words)
    assert command.output_folder(flags) == tmp_path / "evaluation" / "val"


def test_shares_hold_every_question_once(data_file: Path, media_folder: Path) -> None:
    questions = command.read_questions(data_file, image_folder=media_folder)
    shares = [answering.share_out(questions, 2, rank, 2) for rank in range(2)]
    asked = [one.id for share in shares for batch in share for one in batch]
    assert sorted(asked) == ["a", "b", "c", "d", "e"]
    # Like with like: the two pictures of "b" stand first, the text alone last.
    assert shares[0][0][0].id == "b"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_give_the_answers_of_one(
    evaluate: Evaluate, tiny_folder: Path, media_folder: Path, data_file: Path, tmp_path: Path
) -> None:
    single = evaluate("--metrics", "anls")
    words = ["--model-path", str(tiny_folder), "--data-path", str(data_file), "--metrics", "anls"]
    words += ["--image-folder", str(media_folder), "--output", str(tmp_path / "two")]
    words += ["--max-new-tokens", "6", "--batch-size", "2"]
    both = ["--nproc-per-node", "2", "--master-port", "29571", "-m", "phi3v", "evaluate"]
    output = launch([*TORCHRUN, *both, *words], 200)
    assert output.count("5 questions") == 1
    parts = sorted(path.name for path in (tmp_path / "two").glob("answers-*"))
    assert parts == ["answers-0.jsonl", "answers-1.jsonl"]
    assert read_lines(tmp_path / "two" / "samples.jsonl") == single["samples"]


@pytest.mark.slow
def test_the_command_tells_a_mistake_in_one_line(tmp_path: Path) -> None:
    words = ["--model-path", str(tmp_path), "--data-path", str(tmp_path / "none.json")]
    output = launch([sys.executable, "-m", "phi3v", "evaluate", *words], 60, status=2)
    assert output.startswith("phi3v evaluate: error: data file")
    assert len(output.splitlines()) == 1
