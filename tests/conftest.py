import os
import random
from collections.abc import Iterator
from pathlib import Path

# Before transformers is imported: no test may download anything.
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    # What the fast tests run is ours; slow ones also run what other libraries leave open.
    if "not slow" in config.option.markexpr:
        for message, kind in (
            ("unclosed file", "ResourceWarning"),
            ("(?s).*unclosed file", "pytest.PytestUnraisableExceptionWarning"),
        ):
            config.addinivalue_line("filterwarnings", f"error:{message}:{kind}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """Libraries note in the environment what they were told; a process started later reads it."""
    kept = dict(os.environ)
    yield
    if os.environ != kept:
        os.environ.clear()
        os.environ.update(kept)


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


@pytest.fixture(scope="session")
def media_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures, a file that is none, and a clip of 25 frames at 10 a second."""
    from PIL import Image
    from tests.data.clips import write_clip

    folder = tmp_path_factory.mktemp("media")
    for name, size in {"wide": (300, 100), "tall": (50, 170), "square": (64, 64)}.items():
        Image.effect_noise(size, 60).convert("RGB").save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    write_clip(folder / "clip.mkv", num_frames=25, rate=10)
    return folder


@pytest.fixture(scope="session")
def adapter_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes the answers, without processor files, as PEFT itself saves it."""
    from peft import LoraConfig, get_peft_model

    from phi3v.model.loading import load_model

    config = LoraConfig(r=4, target_modules=["qkv_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(load_model(tiny_folder), config)
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    folder = tmp_path_factory.mktemp("adapters") / "run_7"
    adapted.save_pretrained(folder)
    return folder
