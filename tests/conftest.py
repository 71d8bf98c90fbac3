import os
import random
from pathlib import Path

# Before transformers is imported: no test may download anything.
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def golden() -> Path:
    folder = Path(
        os.environ.get("PHI3V_GOLDEN", ROOT.parent / "shared" / "reference" / "golden")
    ).resolve()
    if not (folder / "cases.json").is_file():
        pytest.skip(f"no golden vectors in {folder}; name their folder in PHI3V_GOLDEN")
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from phi3v.model.tiny import write_tiny_checkpoint

    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    write_tiny_checkpoint(folder, crop_size=112, seed=0)
    return folder
