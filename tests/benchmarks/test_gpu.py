"""The part of the benchmark for GPUs: its whole path on a CPU, and what its table says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import gpu
from benchmarks.counters import needed_flops
from benchmarks.gpu_model import time_calls
from benchmarks.gpu_rows import ANSWERS, SAME, STEPS, Row
from benchmarks.gpu_step import make_samples, needed
from benchmarks.models import SIZES, model_config

ROOT = Path(__file__).resolve().parents[2]
ALL = [row.name for row in (*STEPS, *ANSWERS)]


class Model:
    """As much of a model as counting its operations takes."""

    def __init__(self) -> None:
        self.config = model_config(SIZES["quick"])

    def named_parameters(self) -> list[Any]:
        return []


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "finds no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165),
        # Other clocks under the same name of a chip, and unknown chips.
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("Tesla V100-SXM2-16GB", None),
        ("NVIDIA L40", None),
        ("NVIDIA RTX A1000", None),
    ],
)
def test_the_peak_is_that_of_the_named_gpu(name: str, teraflops: float | None) -> None:
    assert gpu.peak_of(name) == (None if teraflops is None else teraflops * 1e12)


def test_what_nobody_measured_is_empty() -> None:
    lines = gpu.format_table([], 989e12).splitlines()[2:]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == ALL
    assert all(re.fullmatch(r"\| [^|]+ \|(  \|){5} [^|]*\|", line) for line in lines), lines


def test_cells_are_medians_of_the_rounds_against_the_peak() -> None:
    name = ALL[0]
    runs = [
        {
            "row": name,
            "samples": rate,
            "tokens": 1000 * rate,
            "flops": 50e12 * rate,
            "executed_over_needed": 1.1,
            "peak_gb": 40.0,
        }
        for rate in (8, 10, 90)
    ]
    assert f"| {name} | 10.00 | 10,000 | 50.0% | 55.0% | 40.0 |" in gpu.format_table(runs, 1e15)
    assert f"| {name} | 10.00 | 10,000 |  |  | 40.0 |" in gpu.format_table(runs, None)
    table = gpu.format_table([*runs, {"row": name, "out_of_memory": True}], 1e15)
    assert f"| {name} | does not fit |  |  |  |  |" in table


def test_a_row_that_fails_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(module: str, name: str, *words: str, quick: bool) -> dict[str, Any]:
        if name == ALL[0]:
            raise RuntimeError("the kernel is missing")
        return {"row": name, "out_of_memory": True}

    monkeypatch.setattr(gpu, "run_module", run)
    words = ["--device", "cpu", "--rounds", "1", "--out", str(tmp_path), "--rows", *ALL[:2]]
    assert gpu.main(words) == 1
    printed = capsys.readouterr()
    assert f"| {ALL[0]} | failed |" in printed.out and f"| {ALL[1]} | does not fit |" in printed.out
    assert "the kernel is missing" in printed.err


def test_steps_on_the_same_samples_must_agree() -> None:
    first, second = SAME[0]
    runs = [
        {"row": name, "loss": loss, "grad_norm": 1.0}
        for name, loss in ((first, 6.0), (second, 6.1))
    ]
    assert gpu.disagreements(runs) == []
    runs[1]["grad_norm"] = 1.1
    assert len(gpu.disagreements(runs)) == 1 and "grad_norm" in gpu.disagreements(runs)[0]
    assert {name for pair in SAME for name in pair} <= set(ALL)


def test_needed_operations_are_those_of_the_other_count() -> None:
    row = Row("own", "full", "mixed-3", num_crops=1)
    groups = make_samples(row, 512)[0]
    counted = needed(row, Model(), groups)
    # Separators count as image tokens there, and the projection's input wants no gradient.
    assert counted == pytest.approx(needed_flops("full", SIZES["quick"], groups), rel=0.05)


def test_a_shared_picture_needs_its_operations_once() -> None:
    shared, apart = (
        needed(Row("own", "lora", kind, num_crops=1), Model(), make_samples(row, 512)[0])
        for kind in ("shared-1", "apart-1")
        for row in (Row("own", "lora", kind, num_crops=1),)
    )
    assert 1 / 4 < shared / apart < 1 / 2


def test_every_call_is_timed() -> None:
    called: list[int] = []
    calls = [lambda own=own: called.append(own) for own in range(3)]
    seconds = time_calls(calls, torch.device("cpu"))
    assert called == [0, 1, 2] and len(seconds) == 3 and all(one >= 0 for one in seconds)


def test_the_page_shows_every_row() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for name in ALL:
        assert f"\n| {name} | " in page


@pytest.mark.slow
def test_the_whole_path_runs_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        *("LoRA, 4 crops", *SAME[0], SAME[1][1], *SAME[2]),
        *("QLoRA, 16 crops, one sample, low memory", "full, tower too, 16 crops"),
        *("answers, 1 at a time, static cache", "answers, 64 at a time"),
    ]
    words = ["--device", "cpu", "--rounds", "1", "--steps", "2", "--warmup", "1"]
    status = gpu.main([*words, "--peak_tflops", "1", "--out", str(tmp_path), "--rows", *rows])
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert status == 0 and report["void"] == []
    results = {one["row"]: one for one in report["results"]}
    assert set(results) == set(rows)
    for row in STEPS:
        if row.name in results:
            own = results[row.name]
            assert len(own["seconds"]) == 2 and own["samples"] > 0 and own["flops"] > 0
            assert 0.9 < own["executed_over_needed"] < (5 if row.arm == "original-sdpa" else 2)
    table = (tmp_path / "gpu.md").read_text()
    assert table in capsys.readouterr().out + "\n"
    assert all(re.search(rf"\| {re.escape(name)} \| .*\d", table) for name in rows)
