"""A few kills of whole runs; `python -m tools.kill_runs --runs 60` does as many as you like."""

import sys

import pytest
from tests.training.launching import ROOT, launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("processes", ["1", "2"])
def test_killed_runs_end_as_unbroken_ones(processes: str) -> None:
    command = [sys.executable, "-m", "tools.kill_runs", "--seed", "5", "--processes", processes]
    output = launch([*command, "--runs", "4"], 500, cwd=ROOT)
    assert "4 kills of training" in output and "equal the unbroken ones" in output
