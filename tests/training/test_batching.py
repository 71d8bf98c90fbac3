"""Runs over packs, and over packs that share their pictures, train as runs over padded batches."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tests.training.conftest import Run, record
from tests.training.test_datasets import vanish_after_check
from torch.testing import assert_close

from phi3v.model.loading import load_config, load_processor
from phi3v.training.arguments import Phi3VTrainingArguments
from phi3v.training.batching import pack_training_set
from phi3v.training.datasets import build_datasets
from phi3v.training.flags import parse_arguments

pytestmark = pytest.mark.slow

ALL_IN_ONE = [
    *("--max_steps", "1", "--optim", "sgd", "--learning_rate", "0.05", "--max_grad_norm", "0"),
    *("--lr_scheduler_type", "constant", "--per_device_train_batch_size", "8"),
]
ONE_PACK = [*ALL_IN_ONE[:-2], "--packing", "True", "--pack_tokens", "100000"]


@pytest.fixture(scope="module")
def questions(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five questions about one picture, two about another, and one without any."""
    about = [
        (name, n) for name, count in (("wide.png", 5), ("square.png", 2)) for n in range(count)
    ]
    records = [
        record(number, [(f"<image>\nQuestion {n}: what?", f"Answer {n}.")], image=name)
        for number, (name, n) in enumerate(about)
    ]
    records.append(record(99, [("Hello", "Hi.")]))
    file = tmp_path_factory.mktemp("questions") / "questions.json"
    file.write_text(json.dumps(records))
    return file


def assert_same_step(first: Run, second: Run) -> None:
    assert_close(first.losses(), second.losses(), atol=1e-5, rtol=1e-5)
    expected = dict(first.model.named_parameters())
    for name, parameter in second.model.named_parameters():
        assert_close(parameter.detach(), expected[name].detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", [[], ["--lora_enable", "--lora_dropout", "0"]])
def test_one_pack_of_all_samples_trains_as_one_padded_batch(
    start: Callable[..., Run], mode: list[str]
) -> None:
    padded = start(*ALL_IN_ONE, *mode, "--padding_free", "False", folder="padded")
    packed = start(*ONE_PACK, *mode, folder="packed")
    assert packed.trainer.tokens.read()[2] == padded.trainer.tokens.read()[2]
    assert_same_step(padded, packed)


def test_shared_pictures_train_as_pictures_for_each_question(
    start: Callable[..., Run], questions: Path
) -> None:
    data = ["--data_path", str(questions)]
    padded = start(*ALL_IN_ONE, *data, "--padding_free", "False", folder="padded")
    shared = start(*ONE_PACK, *data, "--share_images", "True", folder="shared")
    assert_same_step(padded, shared)
    assert shared.trainer.tokens.read()[1] < 0.6 * padded.trainer.tokens.read()[1]


def test_a_shared_picture_that_vanishes_is_skipped_with_its_questions(
    start: Callable[..., Run],
    questions: Path,
    picture: Image.Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("wide.png", "square.png"):
        picture.save(tmp_path / name)
    data = ["--data_path", str(questions), "--image_folder", str(tmp_path)]
    flags = [*ONE_PACK, *data, "--share_images", "True"]
    vanish_after_check(monkeypatch, tmp_path / "wide.png")
    run = start(*flags, "--on_bad_record", "skip")
    assert run.trainer.state.log_history[0]["skipped_records"] == 5
    assert all(0 < loss < 20 for loss in run.losses())
    picture.save(tmp_path / "wide.png")
    with pytest.raises((ValueError, FileNotFoundError), match=r"wide\.png does not exist"):
        start(*flags, folder="other")


def test_groups_stay_below_the_cap(start: Callable[..., Run], questions: Path) -> None:
    run = start(
        *ONE_PACK,
        *("--data_path", str(questions), "--share_images", "True", "--max_branches", "2"),
    )
    groups = run.trainer.train_dataset.groups
    assert sorted(map(len, groups)) == [1, 1, 2, 2, 2]
    assert sorted(position for group in groups for position in group) == list(range(8))


def test_a_packed_run_is_resumed_in_the_middle_of_an_epoch(start: Callable[..., Run]) -> None:
    flags = [
        *("--packing", "True", "--pack_tokens", "150", "--save_strategy", "steps"),
        *("--save_steps", "1", "--max_steps", "4"),
    ]
    unbroken = start(*flags, folder="unbroken")
    assert len(unbroken.trainer.train_dataset) > 3
    resumed = start(
        *flags,
        *("--resume_from_checkpoint", str(unbroken.folder / "checkpoint-2")),
        folder="resumed",
    )
    assert resumed.losses() == unbroken.losses()


def test_sharing_without_packing_is_refused(start: Callable[..., Run]) -> None:
    with pytest.raises(ValueError, match="--share_images needs --packing"):
        start("--share_images", "True")


def test_no_pack_of_several_a_batch_is_trained_twice(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*flags, "--output_dir", str(tmp_path / "out"), "--packing", "--pack_tokens", "1000"]
    arguments, _ = parse_arguments([*words, "--per_device_train_batch_size", "2"])
    dataset, _ = build_datasets(arguments.data, load_processor(arguments.model.model_id))
    config = load_config(arguments.model.model_id)
    monkeypatch.setattr(Phi3VTrainingArguments, "world_size", 3)
    packs = pack_training_set(dataset, config, arguments)
    assert len(packs) == 3 * 2
    monkeypatch.setattr(Phi3VTrainingArguments, "world_size", 7)
    # Eight samples are too few for 7 x 2 packs.
    assert len(pack_training_set(dataset, config, arguments)) == 7
