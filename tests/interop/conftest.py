"""Other programs, each in its own environment, and the folders that they open."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.conftest import ROOT
from tests.interop.cases import write_merged_model
from tools.interop_env import find

Foreign = Callable[..., str]
Answers = dict[str, dict[str, np.ndarray]]


@pytest.fixture(scope="session")
def foreign() -> Foreign:
    """Run one of our scripts by the interpreter of another program's environment."""

    def run(name: str, script: str, *words: object) -> str:
        try:
            python = find(name)
        except FileNotFoundError as error:
            pytest.skip(str(error))
        result = subprocess.run(
            [python, Path(__file__).with_name(script), *map(str, words)],
            env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=540,
        )
        assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-6000:]
        return result.stdout

    return run


@pytest.fixture(scope="session")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `phi3v merge` wrote, in the sizes that other programs take for granted."""
    return write_merged_model(tmp_path_factory.mktemp("merged"))


def read(folder: Path, names: Any) -> Answers:
    return {name: load_file(folder / f"{name}.safetensors") for name in names}


def largest_difference(ours: Answers, theirs: Answers, name: str) -> float:
    return float(np.abs(ours[name]["logprobs"] - theirs[name]["logprobs"]).max())
