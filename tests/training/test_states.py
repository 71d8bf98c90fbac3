"""Checkpoints of strangers that a run is to go on from: looked at, and never run."""

import json
import pickle
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from hypothesis import HealthCheck, given, settings
from tests.hostile.mutations import compress, damaged_bytes, damaged_json
from transformers import TrainerState

from phi3v.cli import main
from phi3v.training.states import check_states

LIMITS = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class Harm:
    """A pickle of it makes a file where it is opened."""

    def __reduce__(self) -> Any:
        return (open, ("harm", "w"))


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "checkpoint-3"
    (folder / "global_step3").mkdir(parents=True)
    TrainerState(global_step=3, log_history=[{"loss": 1.0, "step": 3}]).save_to_json(
        str(folder / "trainer_state.json")
    )
    torch.save({"state": {0: {"step": torch.ones(())}}, "lr": 0.1}, folder / "optimizer.pt")
    torch.save({"numpy": np.random.get_state(), "cpu": torch.get_rng_state()}, folder / "rng.pth")
    torch.save({"step": 3}, folder / "global_step3" / "rank_0_optim_states.pt")
    (folder / "latest").write_text("global_step3")
    return folder


def test_a_checkpoint_of_ours_passes(checkpoint: Path) -> None:
    assert check_states(str(checkpoint)) == str(checkpoint)
    assert check_states(None) is None


@pytest.mark.parametrize("name", ["optimizer.pt", "rng.pth", "global_step3/rank_0_optim_states.pt"])
@pytest.mark.parametrize("save", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(checkpoint: Path, name: str, save: str) -> None:
    if save == "torch":
        torch.save(Harm(), checkpoint / name)
        message = "open, which is in no checkpoint of ours"
    else:
        (checkpoint / name).write_bytes(pickle.dumps(Harm()))
        message = "only tensors are read from a pickle"
    with pytest.raises(ValueError, match=message):
        check_states(str(checkpoint))
    assert not Path("harm").exists()


class Stage:
    """Pickled as a member of an enumeration is by Python before 3.11.4."""

    def __init__(self, name: str = "gradients", enum: Any = ZeroStageEnum) -> None:
        self.found = (enum, name)

    def __reduce__(self) -> Any:
        return (getattr, self.found)


def save_stages(checkpoint: Path, *stages: Stage) -> None:
    torch.save(list(stages), checkpoint / "global_step3" / "rank_0_optim_states.pt")


def test_a_stage_of_deepspeed_passes_in_the_form_of_any_python(checkpoint: Path) -> None:
    save_stages(checkpoint, Stage())
    assert check_states(str(checkpoint)) == str(checkpoint)
    torch.save([ZeroStageEnum.weights], checkpoint / "global_step3" / "rank_0_optim_states.pt")
    assert check_states(str(checkpoint)) == str(checkpoint)


@pytest.mark.parametrize(
    "stages",
    [
        [Stage("__class__")],
        [Stage("gradients", LossScaler)],
        [Stage(), Stage("__init__", LossScaler)],
        [Stage("__init__", LossScaler), Stage()],
    ],
)
def test_any_other_look_up_is_refused(checkpoint: Path, stages: list[Stage]) -> None:
    save_stages(checkpoint, *stages)
    with pytest.raises(ValueError, match=r"asks for builtins\.getattr"):
        check_states(str(checkpoint))


def test_the_command_says_so_in_a_line(
    checkpoint: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(Harm(), checkpoint / "optimizer.pt")
    resume = ["--resume_from_checkpoint", str(checkpoint)]
    assert main(["train", *flags, "--output_dir", str(checkpoint.parent), *resume]) == 2
    assert "phi3v train: error: " in (error := capsys.readouterr().err)
    assert "do not trust its source" in error and "Traceback" not in error
    assert not Path("harm").exists()


def test_other_classes_are_refused(checkpoint: Path) -> None:
    torch.save(Namespace(a=1), checkpoint / "scheduler.pt")
    with pytest.raises(ValueError, match=r"argparse\.Namespace, which is in no checkpoint"):
        check_states(str(checkpoint))


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp", "global_step4", "", "a" * 10**6])
def test_deepspeed_is_led_nowhere_else(checkpoint: Path, name: str) -> None:
    (checkpoint / "latest").write_text(name)
    with pytest.raises(ValueError, match="expected a folder global_step"):
        check_states(str(checkpoint))


def test_a_sharded_state_is_refused(checkpoint: Path) -> None:
    (checkpoint / "optimizer_0").mkdir()
    (checkpoint / "optimizer_0" / ".metadata").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(ValueError, match="is a sharded state"):
        check_states(str(checkpoint))


def test_a_compressed_state_is_refused(checkpoint: Path) -> None:
    compress(checkpoint / "optimizer.pt")
    with pytest.raises(ValueError, match="do not trust its source"):
        check_states(str(checkpoint))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"global_step": "3"}, "global_step is '3'"),
        ({"global_step": 2.5}, "global_step is '2.5'"),
        ({"log_history": {}}, "log_history is"),
        ({"best_metric": "x"}, "best_metric is 'x'"),
        ({"unknown": 1}, "is no state of a run"),
    ],
)
def test_a_state_that_no_run_writes_is_named(
    checkpoint: Path, fields: dict[str, Any], message: str
) -> None:
    file = checkpoint / "trainer_state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(ValueError, match=message):
        check_states(str(checkpoint))


@pytest.mark.parametrize("name", ["trainer_state.json", "optimizer.pt", "rng.pth"])
def test_a_damaged_state_is_explained(checkpoint: Path, name: str) -> None:
    content = (checkpoint / name).read_bytes()
    damage: Callable[[bytes], Any] = damaged_json if name.endswith("json") else damaged_bytes

    @LIMITS
    @given(damage(content))
    def try_one(damaged: bytes) -> None:
        (checkpoint / name).write_bytes(damaged)
        try:
            check_states(str(checkpoint))
        except (ValueError, OSError) as error:
            assert str(error)

    try_one()
