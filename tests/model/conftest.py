import gzip
import shutil
from pathlib import Path

import pytest

from phi3v.model import Phi3VImageProcessor, Phi3VProcessor
from phi3v.model.tokenizer import make_small_tokenizer


@pytest.fixture(scope="session")
def published_folders(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders p3 and p35 with all published JSON files and no weights."""
    root = tmp_path_factory.mktemp("published")
    content = gzip.decompress((golden / "tokenizer" / "tokenizer.json.gz").read_bytes())
    for name in ("p3", "p35"):
        (root / name).mkdir()
        for file in (golden / "checkpoints" / name).glob("*.json"):
            shutil.copyfile(file, root / name / file.name)
        (root / name / "tokenizer.json").write_bytes(content)
    return root


@pytest.fixture(scope="session")
def small() -> Phi3VProcessor:
    """A processor of 28-pixel crops with a small tokenizer."""
    return Phi3VProcessor(Phi3VImageProcessor(num_crops=2, crop_size=28), make_small_tokenizer())
