"""The soak: what grows is found, also in a real run, and what is left behind."""

import json
import random
import sys
from pathlib import Path

import pytest
from benchmarks import soak, watching
from benchmarks.growth import growth
from benchmarks.watching import FILES, SERIES, watch

STEPS = range(1, 401)


def test_a_level_with_noise_is_flat() -> None:
    noise = random.Random(0)
    found = growth(STEPS, [500 + noise.gauss(0, 0.5) for _ in STEPS], allowed=4)
    assert found.verdict == "flat" and abs(found.slope) < found.error


def test_what_rises_only_in_the_first_half_is_flat() -> None:
    assert growth(STEPS, [min(step, 200) for step in STEPS], allowed=4).verdict == "flat"


def test_a_small_leak_in_noise_grows() -> None:
    noise = random.Random(0)
    values = [500 + 0.02 * step + noise.gauss(0, 0.5) for step in STEPS]
    found = growth(STEPS, values, allowed=4)
    assert found.verdict == "grows"
    assert found.slope == pytest.approx(20, abs=found.error)


def test_noise_that_could_hide_a_leak_is_unclear() -> None:
    noise = random.Random(0)
    assert growth(STEPS, [noise.gauss(0, 50) for _ in STEPS], allowed=4).verdict == "unclear"


def test_an_evaluation_now_and_then_is_no_growth() -> None:
    values = [100 + 60 * (step % 40 == 0) * step / 400 for step in STEPS]
    assert growth(STEPS, values, allowed=4).verdict == "flat"


def test_a_run_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="15 samples in the second half .* make more steps"):
        growth(range(1, 31), [0.0] * 30, allowed=4)


# It waits for each sample, and never for its ended children. What it starts at last goes on when it
# ends, in a session of its own.
LEAVES = """
import os, subprocess, sys, time
kept = []
for step in range(1, 6):
    kept.append(open(sys.argv[1]))
    kept.append(bytearray(b"1") * 3_000_000)
    kept.append(subprocess.Popen([sys.executable, "-S", "-c", ""]))
    os.waitid(os.P_PID, kept[-1].pid, os.WEXITED | os.WNOWAIT)
    print("step", step)
    while not os.path.exists(f"{sys.argv[1]}.{step}"):
        time.sleep(0.01)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True,
                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
"""


@pytest.mark.slow
def test_what_a_run_keeps_and_leaves_behind_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_MOST_SECONDS_TO_END", 1)
    script = tmp_path / "leaves.py"
    script.write_text(LEAVES)

    def step_of(line: str) -> int | None:
        return int(line.split()[1]) if line.startswith("step") else None

    asked = iter(range(1, 6))

    def count_files() -> int:
        script.with_name(f"leaves.py.{next(asked)}").touch()
        return 7

    watched = watch([sys.executable, str(script), str(script)], step_of, count_files)
    assert watched.status == 0
    assert [one["step"] for one in watched.samples] == [1, 2, 3, 4, 5]
    first, last = watched.samples[0], watched.samples[-1]
    assert set(first) == {"step", *SERIES} and last[FILES] == 7
    assert last["memory of the trainers, MB"] - first["memory of the trainers, MB"] >= 11
    assert last["open files and sockets"] - first["open files and sockets"] == 4
    assert last["processes"] - first["processes"] == 4
    assert len(watched.leftovers) == 1 and "time.sleep(600)" in watched.leftovers[0]


@pytest.mark.slow
def test_leaks_planted_in_a_training_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.leaking"]
    monkeypatch.setattr(soak, "training_command", lambda processes: command)
    assert soak.main(["--steps", "120", "--workers", "0", "--out", str(tmp_path)]) == 1
    report = json.loads((tmp_path / "soak.json").read_text())
    verdicts = {row["name"]: row["verdict"] for row in report["rows"]}
    for name in ("memory of the trainers, MB", "open files and sockets", "threads"):
        assert verdicts[name] == "grows", report["rows"]
    assert report["evaluations"] == 21 and len(report["checkpoints"]) == 2
    assert report["leftover_processes"] == report["leftover_shared_memory"] == []
    assert report["temporary"] == []
    printed = soak.format_report(report)
    assert printed.endswith("FAILED") and max(map(len, printed.splitlines())) <= 80
    assert printed in capsys.readouterr().out
    assert (tmp_path / "soak.svg").read_text().count("<polyline") == len(SERIES)
