import logging
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers.utils import logging as library_logging

from phi3v import load_model
from phi3v.model.tiny import write_tiny_checkpoint

# Far above what the small folders need, far below what a lying header asks for.
ROOM = 2 << 30


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Let this process take 2 GiB more than it has; what wants more fails in the test."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    taken = pages * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.ERROR)
    library_logging.disable_progress_bar()
    yield
    logging.disable(logging.NOTSET)
    library_logging.enable_progress_bar()


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 0.3 MB, whose damage is quickly drawn."""
    folder = tmp_path_factory.mktemp("hostile") / "small"
    return write_tiny_checkpoint(folder, hidden_size=32, vision_hidden_size=16)


@pytest.fixture(scope="session")
def small_adapter(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "adapter"
    config = LoraConfig(r=2, target_modules=["qkv_proj"], modules_to_save=["img_projection"])
    get_peft_model(load_model(small_folder), config).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(small_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_folder, tmp_path / "model"))


@pytest.fixture
def adapter(small_adapter: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_adapter, tmp_path / "adapter"))
