"""vLLM opens a merged folder and computes what we compute, from the same prompts and pictures."""

from pathlib import Path

import numpy as np
import pytest
from tests.interop.cases import NUM_VISION_LAYERS, PROMPTS, write_cases
from tests.interop.conftest import Answers, Foreign, largest_difference, read

pytestmark = pytest.mark.interop


@pytest.fixture(scope="module")
def cases(merged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cases(merged, tmp_path_factory.mktemp("cases"))


@pytest.fixture(scope="module")
def theirs(
    foreign: Foreign, merged: Path, cases: Path, tmp_path_factory: pytest.TempPathFactory
) -> Answers:
    target = tmp_path_factory.mktemp("vllm") / "answers"
    foreign("vllm", "vllm_reader.py", merged, cases, target, NUM_VISION_LAYERS)
    return read(target, PROMPTS)


@pytest.mark.parametrize("name", PROMPTS)
def test_answers_are_ours(cases: Path, theirs: Answers, name: str) -> None:
    ours = read(cases, [name])
    np.testing.assert_array_equal(theirs[name]["input_ids"], ours[name]["input_ids"])
    # Float32 on both sides, kernels and order of sums differ.
    assert largest_difference(ours, theirs, name) < 1e-3
    np.testing.assert_array_equal(theirs[name]["greedy"], ours[name]["greedy"])
