"""Answers that are scored while a run trains, and the report at its end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.evaluation.conftest import read_lines
from tests.training.launching import ROOT, TORCHRUN, compile_deepspeed_op, launch, write_mixed_data

from phi3v import cli, finetune
from phi3v.data.answered import ShownAnswer
from phi3v.evaluation.report import write_report
from phi3v.evaluation.while_training import even_share, generating
from phi3v.model.loading import load_model
from phi3v.model.tiny import write_tiny_checkpoint
from phi3v.training import train
from phi3v.training.answers import show_answers
from phi3v.training.checks import check_arguments
from phi3v.training.flags import parse_arguments

Train = Callable[..., Path]


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "model"
    return write_tiny_checkpoint(
        folder, crop_size=56, hidden_size=64, vision_hidden_size=32, num_crops=4
    )


@pytest.fixture
def words(small_base: Path, tmp_path: Path) -> list[str]:
    """Flags of a short run with validation; five held-out records do not share evenly."""
    data = write_mixed_data(tmp_path)
    held_out = tmp_path / "held_out.json"
    held_out.write_text(json.dumps(json.loads(data.read_text())[:5]))
    return [
        *("--model_id", str(small_base), "--data_path", str(data)),
        *("--image_folder", str(tmp_path), "--eval_data_path", str(held_out)),
        *("--num_crops", "2", "--max_num_frames", "2", "--use_cpu", "True"),
        *("--dataloader_num_workers", "0", "--report_to", "none", "--disable_tqdm", "True"),
        *("--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "1"),
        *("--per_device_eval_batch_size", "2", "--max_steps", "2", "--save_strategy", "no"),
        *("--eval_strategy", "steps", "--eval_steps", "2", "--learning_rate", "1e-3"),
        *("--lora_enable", "True", "--lora_rank", "4"),
        *("--eval_generate", "True", "--eval_generate_tokens", "5", "--eval_metrics", "anls"),
    ]


@pytest.fixture
def run_training(words: list[str], tmp_path: Path) -> Train:
    def run_training(*more: str, folder: str = "run") -> Path:
        target = tmp_path / folder
        assert finetune.main([*words, "--output_dir", str(target), *more]) == 0
        return target

    return run_training


def history(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


@pytest.mark.slow
def test_answers_are_scored_at_every_evaluation(
    run_training: Train, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = run_training()
    scores = {e["step"]: e["eval_anls"] for e in history(folder) if "eval_anls" in e}
    assert scores.keys() == {0, 2}
    samples = read_lines(folder / "answers" / "step-000002" / "samples.jsonl")
    assert len(samples) == 5
    found = sum(one["scores"]["anls"] for one in samples) / 5
    assert scores[2] == pytest.approx(found, abs=1e-6)
    out = capsys.readouterr().out
    assert "step 2: anls" in out and "answered" in out
    # The page at the end shows them, before and after.
    assert "Scores on held_out.json" in (folder / "report.html").read_text()
    # The same code, and the same model: phi3v evaluate finds the same answers in the result.
    command = ["evaluate", "--model-path", str(folder), "--metrics", "anls", "--turns", "last"]
    command += ["--data-path", str(tmp_path / "held_out.json"), "--image-folder", str(tmp_path)]
    command += ["--max-new-tokens", "5", "--max-frames", "2", "--dtype", "float32"]
    assert cli.main(command) == 0
    again = read_lines(folder / "evaluation" / "held_out" / "samples.jsonl")
    assert [one["answer"] for one in again] == [one["answer"] for one in samples]


@pytest.mark.slow
def test_scoring_changes_nothing_in_the_training(run_training: Train) -> None:
    with_answers = run_training(folder="with")
    # An evaluation draws seeds for its loader, so both runs make the same ones.
    without = run_training(
        *("--eval_generate", "False", "--eval_on_start", "True", "--eval_metrics", "auto"),
        *("--eval_generate_tokens", "64"),
        folder="without",
    )
    losses = [
        [e[key] for e in history(folder) for key in ("loss", "eval_loss") if key in e and e["step"]]
        for folder in (with_answers, without)
    ]
    assert losses[0] == losses[1] and len(losses[0]) >= 3


@pytest.mark.slow
def test_the_best_checkpoint_is_chosen_by_a_task_metric(
    run_training: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted = {0: 0.0, 1: 0.9, 2: 0.4}
    make = finetune.make_scorer

    def make_scripted(*args: Any) -> Any:
        scorer = make(*args)
        return lambda model, step: ({"anls": scripted[step]}, scorer(model, step)[1])

    monkeypatch.setattr(finetune, "make_scorer", make_scripted)
    folder = run_training(
        *("--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "1"),
        *("--load_best_model_at_end", "True", "--metric_for_best_model", "anls"),
    )
    state = json.loads((folder / "trainer_state.json").read_text())
    assert (state["best_global_step"], state["best_metric"]) == (1, 0.9)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", ["ddp", "zero3"])
def test_two_processes_score_what_one_does(
    words: list[str], run_training: Train, tmp_path: Path, way: str
) -> None:
    more = ["--output_dir", str(tmp_path / "two")]
    if way == "zero3":
        compile_deepspeed_op()
        more += ["--deepspeed", str(ROOT / "scripts" / "zero3.json")]
    run_training("--max_steps", "1", "--eval_steps", "1")
    both = ["--nproc-per-node", "2", "--master-port", "29573", "-m", "phi3v.training.train"]
    output = launch([*TORCHRUN, *both, *words, *more], 400)
    assert output.count("step 0: anls") == 1
    assert (tmp_path / "two" / "report.html").is_file()
    parts = [
        read_lines(tmp_path / folder / "answers" / "step-000000" / "samples.jsonl")
        for folder in ("run", "two")
    ]
    assert parts[0] == parts[1] and len(parts[0]) == 5


def test_shares_have_equally_many_batches() -> None:
    questions: list[Any] = [_Question(n) for n in range(5)]
    shares = [even_share(questions, 1, rank, 3) for rank in range(3)]
    assert [len(share) for share in shares] == [2, 2, 2]
    assert {one.id for share in shares for batch in share for one in batch} == set(range(5))
    assert [len(even_share(questions[:1], 4, rank, 3)) for rank in range(3)] == [1, 1, 1]


class _Question:
    turns = ()

    def __init__(self, number: int) -> None:
        self.id = number


def test_a_model_is_left_as_it_was(small_base: Path) -> None:
    model = load_model(small_base).train()
    model.model.link_vision_without_images = True
    with pytest.raises(KeyError), generating(model):
        assert not model.training and not model.model.link_vision_without_images
        raise KeyError
    assert model.training and model.model.link_vision_without_images


class _Writer:
    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.pictures: dict[str, tuple[int, ...]] = {}

    def add_text(self, tag: str, text: str, step: int) -> None:
        self.texts[tag] = text

    def add_image(self, tag: str, pixels: Any, step: int, dataformats: str) -> None:
        self.pictures[tag] = pixels.shape


def test_tensorboard_gets_text_and_picture(capsys: pytest.CaptureFixture[str]) -> None:
    from transformers.integrations import TensorBoardCallback

    writer = _Writer()
    callback = TensorBoardCallback(tb_writer=writer)
    answer = ShownAnswer("What?\x1b[31m", ("a", "b"), "# *c*\n<b>", Image.new("RGB", (20, 10)))
    show_answers(7, {"anls": 0.5}, [answer], [callback])
    # Indented by four: a block in which nothing is markup.
    assert "    # *c*\n    <b>" in writer.texts["answers/1"]
    assert writer.pictures == {"answers/1/picture": (10, 20, 3)}
    out = capsys.readouterr().out
    assert "step 7: anls 0.5000" in out and "expected a | b" in out and "\x1b" not in out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--eval_metrics", "rougel"], "unknown metric 'rougel'; did you mean rouge_l"),
        (
            ["--metric_for_best_model", "cider"],
            "--metric_for_best_model cider is not computed; --eval_metrics gives loss, anls",
        ),
    ],
)
def test_metrics_are_checked_before_the_first_step(
    words: list[str], tmp_path: Path, more: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        finetune.main([*words, "--output_dir", str(tmp_path / "run"), *more])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--eval_strategy", "no"], "--eval_generate contradicts --eval_strategy no"),
        (["--eval_generate_samples", "0"], "--eval_generate_samples is 0"),
        (["--eval_generate_tokens", "-1"], "--eval_generate_tokens is -1"),
    ],
)
def test_contradictions_are_refused(words: list[str], more: list[str], message: str) -> None:
    arguments, _ = parse_arguments([*words, *more])
    with pytest.raises(ValueError, match=message):
        check_arguments(*arguments[:4])


def test_idle_flags_are_named(words: list[str]) -> None:
    arguments, _ = parse_arguments([*words, "--eval_generate", "False"])
    hints = check_arguments(*arguments[:4])
    assert "--eval_metrics has no effect with --eval_generate False" in hints


def test_scoring_begins_before_the_first_step_unless_told(words: list[str]) -> None:
    assert parse_arguments(words)[0].training.eval_on_start
    assert not parse_arguments([*words, "--eval_on_start", "False"])[0].training.eval_on_start


def test_training_alone_cannot_score(words: list[str], tmp_path: Path) -> None:
    arguments, _ = parse_arguments([*words, "--output_dir", str(tmp_path / "run")])
    with pytest.raises(ValueError, match="start the run by phi3v train"):
        train.run(arguments)


def test_a_report_that_cannot_be_written_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    finetune.report(tmp_path)
    assert "no report was written" in caplog.text
    with pytest.raises(FileNotFoundError):
        write_report(tmp_path)
