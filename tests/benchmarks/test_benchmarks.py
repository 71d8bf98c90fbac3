"""The benchmark at its smallest: its arms make the same step, and it writes what it promises."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.__main__ import main
from benchmarks.arms import build, loss_of, prepare
from benchmarks.batches import make_groups
from benchmarks.counters import count_step, needed_flops
from benchmarks.memory import profile
from benchmarks.models import SIZES, model_config

from phi3v.training.operations import needed_operations
from phi3v.training.parts import Plan

SMALL = {"num_crops": 1, "vocabulary": 512}


def gradients(arm: str, method: str, kind: str) -> dict[str, torch.Tensor]:
    model, _ = build(arm, method, SIZES["quick"])
    batch = prepare(arm, make_groups(kind, **SMALL), 1)
    loss_of(arm, model, batch).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("arm", ["original", "original-sdpa", "hf", "ours-full"])
@pytest.mark.parametrize("kind", ["mixed-3", "questions-2"])
@pytest.mark.slow
def test_every_arm_has_the_gradients_of_ours(arm: str, kind: str) -> None:
    ours, other = gradients("ours", "lora", kind), gradients(arm, "lora", kind)
    assert ours.keys() == other.keys()
    assert any("lora_A" in name for name in ours)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, other[name], atol=1e-5, rtol=1e-3)


def test_ours_waits_for_no_device_and_executes_what_is_needed() -> None:
    groups = make_groups("mixed-2", **SMALL)
    ours = count_step("ours", "full", SIZES["quick"], groups)
    original = count_step("original-sdpa", "full", SIZES["quick"], groups)
    assert ours["waits"] == 0 < original["waits"]
    needed = needed_flops("full", SIZES["quick"], groups)
    # Attention's kernel makes the scores again; in so small a model that is a visible share.
    assert 1.0 <= ours["flops"] / needed < 1.06
    assert original["flops"] / needed > 1.3


@pytest.mark.parametrize("method", ["lora", "full"])
def test_packs_are_balanced_by_what_a_step_needs(method: Any) -> None:
    size, groups = SIZES["fm-tiny"], make_groups("mixed-3", **SMALL)
    examples = [example for group in groups for example in group]
    pictures = [example["image_sizes"] for example in examples]
    counted = needed_operations(
        model_config(size),
        Plan("LoRA" if method == "lora" else "full", "frozen", "full"),
        lengths=np.array([len(example["input_ids"]) for example in examples]),
        crops=np.array([sum(1 + h * w // 336**2 for h, w in sizes) for sizes in pictures]),
        labels=np.array([int((example["labels"] != -100).sum()) for example in examples]),
        adapters=size.adapters if method == "lora" else (0, 0),
    )
    # The first product of the projection, whose input wants no gradient, is counted fully here.
    assert counted.sum() == pytest.approx(needed_flops(method, size, groups), rel=0.01)


def test_the_profile_adds_up_to_the_peak_and_names_lines() -> None:
    sizes = {"model_name": "quick", "batch_kind": "text-256", "num_crops": 1}
    none, full = (profile(arm, "lora", **sizes) for arm in ("ours", "ours-full"))
    assert sum(none["alive"].values()) == pytest.approx(none["peak_mb"])
    assert full["peak_mb"] < none["peak_mb"]
    assert any(line.startswith("decoder.py:") for line in none["alive"])


@pytest.mark.slow
def test_the_whole_report_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["void"] == []
    for runs in report["steps"].values():
        assert {run["arm"] for run in runs} >= {"original", "ours"}
        assert all(run["cpu_s"] > 0 and run["peak_mb"] > 0 for run in runs)
    assert {row["name"] for row in report["bars"]} >= {"waits of the host", "crops encoded / real"}
    assert report["merge"]["bit_identical"] and report["loader-16"]["bit_identical"]
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "missed" in printed or all(row["met"] for row in report["bars"])
    assert len(list(tmp_path.glob("*.svg"))) == 6
