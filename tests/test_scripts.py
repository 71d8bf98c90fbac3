import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.training.launching import (
    compile_deepspeed_op,
    environment,
    launch,
    write_mixed_data,
)

from phi3v import load_model
from phi3v.model.tiny import write_tiny_checkpoint
from phi3v.training.checks import check_arguments
from phi3v.training.flags import RunArguments, parse_arguments
from phi3v.training.sharding import settle_config, zero_stage

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
RECIPES = ["finetune", "finetune_lora", "finetune_lora_vision", "finetune_video"]
SETTINGS: dict[str, dict[str, Any]] = {
    "finetune": {
        **{"learning_rate": 2e-5, "projector_lr": 2e-5, "vision_lr": 2e-6, "num_crops": 16},
        **{"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
        **{"lora_enable": False, "freeze_vision_tower": False, "num_train_epochs": 1},
    },
    "finetune_lora": {
        **{"learning_rate": 1e-4, "projector_lr": 1e-5, "vision_lr": 2e-6, "num_crops": 16},
        **{"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8},
        **{"lora_enable": True, "lora_rank": 64, "lora_alpha": 64, "lora_dropout": 0.05},
        **{"freeze_vision_tower": False, "tune_img_projector": True, "vision_lora": False},
    },
    "finetune_lora_vision": {
        **{"learning_rate": 2e-4, "num_crops": 16, "num_train_epochs": 2},
        **{"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
        **{"lora_enable": True, "lora_rank": 64, "lora_alpha": 64, "vision_lora": True},
        **{"freeze_vision_tower": True, "tune_img_projector": False},
    },
    "finetune_video": {
        **{"learning_rate": 2e-5, "projector_lr": 2e-5, "vision_lr": 2e-6, "num_crops": 4},
        **{"max_num_frames": 32, "lora_enable": False, "freeze_vision_tower": False},
    },
}


def words_of(name: str, tmp_path: Path, *more: str, **settings: str) -> list[str]:
    """Return the words that a script starts Python with; a stand-in prints them."""
    stand_in = tmp_path / "python"
    stand_in.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    output = subprocess.run(
        ["bash", str(SCRIPTS / f"{name}.sh"), *more],
        cwd=tmp_path,
        env=environment(PYTHON=str(stand_in), **{"NUM_PROCESSES": "2"} | settings),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return output.splitlines()


def parse_recipe(name: str, tmp_path: Path, *more: str) -> RunArguments:
    words = words_of(name, tmp_path, "--data_path", "data.json", *more, LAUNCHER="python")
    assert words[:2] == ["-m", "phi3v.training.train"]
    return parse_arguments(words[2:])[0]


@pytest.mark.parametrize("file", sorted(SCRIPTS.glob("*.sh")), ids=lambda file: file.name)
def test_script_is_strict_and_hands_flags_on(file: Path) -> None:
    subprocess.run(["bash", "-n", str(file)], check=True)
    text = file.read_text(encoding="utf-8").rstrip()
    if file.name != "launch.sh":
        assert "\nset -euo pipefail\n" in text
        # A job that was warned is queued again behind its last step.
        assert '"$@" &' in text if file.name == "slurm.sh" else text.endswith('"$@"')


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_has_the_documented_settings(name: str, tmp_path: Path) -> None:
    arguments = parse_recipe(name, tmp_path)
    found = {key: value for group in arguments[:4] for key, value in vars(group).items()}
    assert {key: found[key] for key in SETTINGS[name]} == SETTINGS[name]
    assert arguments.training.bf16 and arguments.training.lr_scheduler_type == "cosine"
    assert check_arguments(*arguments[:4]) == []


@pytest.mark.parametrize("name", RECIPES)
def test_flags_after_the_name_win(name: str, tmp_path: Path) -> None:
    arguments = parse_recipe(name, tmp_path, "--num_crops", "3", "--model_id", "mine")
    assert (arguments.data.num_crops, arguments.model.model_id) == (3, "mine")


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        ({"LAUNCHER": "deepspeed"}, "-m deepspeed.launcher.runner --num_gpus 2 --module"),
        (
            {"LAUNCHER": "deepspeed", "HOSTFILE": "hosts"},
            "-m deepspeed.launcher.runner --hostfile hosts --module",
        ),
        (
            {"LAUNCHER": "torchrun"},
            "-m torch.distributed.run --standalone --nproc-per-node 2 -m",
        ),
        (
            {"LAUNCHER": "torchrun", "NUM_NODES": "3", "RDZV_ENDPOINT": "a:29500"},
            "-m torch.distributed.run --nnodes 3 --rdzv-backend c10d --rdzv-endpoint a:29500 "
            "--rdzv-id phi3v --nproc-per-node 2 -m",
        ),
        (
            {"LAUNCHER": "accelerate", "ACCELERATE_CONFIG": "fsdp2.yaml"},
            "-m accelerate.commands.launch --num_processes 2 --config_file fsdp2.yaml -m",
        ),
        ({"LAUNCHER": "python"}, "-m"),
    ],
)
def test_launcher_is_chosen_by_the_environment(
    settings: dict[str, str], start: str, tmp_path: Path
) -> None:
    words = words_of("finetune", tmp_path, **settings)
    assert " ".join(words).startswith(f"{start} phi3v.training.train --model_id")


def test_unknown_launcher_is_refused(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        words_of("finetune", tmp_path, LAUNCHER="mpi")
    assert "LAUNCHER is 'mpi', expected deepspeed, torchrun" in caught.value.stderr


def test_merge_script_starts_the_command(tmp_path: Path) -> None:
    words = words_of("merge_lora", tmp_path, "--model-path", "a", "--save-model-path", "b")
    assert words == [
        *("-m", "phi3v", "merge", "--safe-serialization"),
        *("--model-path", "a", "--save-model-path", "b"),
    ]


@pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3), ("zero3_offload", 3)])
def test_deepspeed_file_leaves_everything_to_the_flags(name: str, stage: int) -> None:
    config = json.loads((SCRIPTS / f"{name}.json").read_text(encoding="utf-8"))
    assert zero_stage(config) == stage
    assert not {"optimizer", "scheduler"} & config.keys()
    text = json.dumps(config)
    for key in ("train_batch_size", "gradient_accumulation_steps", "gradient_clipping"):
        assert re.search(f'"{key}": "auto"', text)
    if name == "zero3_offload":
        assert config["zero_force_ds_cpu_optimizer"] is False


@pytest.mark.parametrize("name", ["zero2", "zero3", "zero3_offload"])
def test_deepspeed_file_is_found_from_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert settle_config(f"scripts/{name}.json") == (str(SCRIPTS / f"{name}.json"), [])


def tiny_run(folder: Path) -> list[str]:
    base = write_tiny_checkpoint(
        folder / "base", crop_size=56, hidden_size=64, vision_hidden_size=32, num_crops=4
    )
    data = write_mixed_data(folder)
    return [
        *("--model_id", str(base), "--data_path", str(data), "--image_folder", str(folder)),
        *("--output_dir", "out", "--max_steps", "1", "--num_crops", "2"),
    ]


def start(name: str, folder: Path, words: Sequence[str], **settings: str) -> str:
    return launch(
        ["bash", str(SCRIPTS / f"{name}.sh"), *words],
        150,
        cwd=folder,
        **{"PYTHON": sys.executable} | settings,
    )


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains_a_tiny_checkpoint_from_any_folder(name: str, tmp_path: Path) -> None:
    output = start(name, tmp_path, tiny_run(tmp_path))
    assert "result           out" in output
    load_model(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_lora_recipe_trains_on_two_processes_and_is_merged(tmp_path: Path) -> None:
    compile_deepspeed_op()
    settings = {"LAUNCHER": "deepspeed", "NUM_PROCESSES": "2"}
    start("finetune_lora", tmp_path, tiny_run(tmp_path), **settings)
    merging = ["--model-path", "out", "--save-model-path", "merged", "--verify"]
    assert "verified" in start("merge_lora", tmp_path, merging)
    load_model(tmp_path / "merged")
