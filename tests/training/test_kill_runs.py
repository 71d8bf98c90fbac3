"""A few kills of whole runs; `python -m tools.kill_runs --runs 60` does as many as you like."""

import sys

import pytest
from tests.training.launching import ROOT, launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("words", [["1"], ["2"], ["2", "--cache_vision"]], ids=" ".join)
def test_killed_runs_end_as_unbroken_ones(words: list[str]) -> None:
    command = [sys.executable, "-m", "tools.kill_runs", "--seed", "5", "--processes", *words]
    output = launch([*command, "--runs", "4"], 500, cwd=ROOT)
    assert "4 kills of training" in output and "equal the unbroken ones" in output
