"""MLX-VLM opens a merged folder and computes what we compute."""

from pathlib import Path

import numpy as np
import pytest
from tests.interop.cases import NUM_VISION_LAYERS, write_cases
from tests.interop.conftest import Answers, Foreign, largest_difference, read

pytestmark = pytest.mark.interop
RIGHT = ["text", "square picture", "tall picture", "two pictures"]
WRONG = ["wide picture"]


@pytest.fixture(scope="module")
def cases(merged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cases(merged, tmp_path_factory.mktemp("cases"), RIGHT + WRONG)


@pytest.fixture(scope="module")
def ours(cases: Path) -> Answers:
    return read(cases, RIGHT + WRONG)


@pytest.fixture(scope="module")
def theirs(
    foreign: Foreign, merged: Path, cases: Path, tmp_path_factory: pytest.TempPathFactory
) -> Answers:
    target = tmp_path_factory.mktemp("mlx") / "answers"
    foreign("mlx-vlm", "mlx_reader.py", merged, cases, target, NUM_VISION_LAYERS, *RIGHT, *WRONG)
    return read(target, RIGHT + WRONG)


@pytest.mark.parametrize("name", RIGHT)
def test_answers_are_ours(ours: Answers, theirs: Answers, name: str) -> None:
    # Float32 on both sides, kernels and order of sums differ.
    assert largest_difference(ours, theirs, name) < 1e-3
    np.testing.assert_array_equal(theirs[name]["greedy"], ours[name]["greedy"])


def test_pictures_two_crops_wide_are_laid_out_wrong_there(ours: Answers, theirs: Answers) -> None:
    # docs/serving.md warns of it; when this fails, MLX-VLM has learned it: take the warning away.
    assert largest_difference(ours, theirs, "wide picture") > 0.1
