import gzip
import shutil
from pathlib import Path

import pytest
from PIL import Image
from tests.data.clips import write_clip

from phi3v.model.image_processing import Phi3VImageProcessor
from phi3v.model.processing import Phi3VProcessor
from phi3v.model.tokenizer import load_tokenizer, make_small_tokenizer


@pytest.fixture(scope="session")
def small_processor() -> Phi3VProcessor:
    return Phi3VProcessor(Phi3VImageProcessor(num_crops=4, crop_size=112), make_small_tokenizer())


@pytest.fixture(scope="session")
def published_processor(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Phi3VProcessor:
    folder = tmp_path_factory.mktemp("tokenizer")
    shutil.copy(golden / "checkpoints" / "p35" / "tokenizer_config.json", folder)
    packed = (golden / "tokenizer" / "tokenizer.json.gz").read_bytes()
    (folder / "tokenizer.json").write_bytes(gzip.decompress(packed))
    return Phi3VProcessor(Phi3VImageProcessor(num_crops=4), load_tokenizer(folder))


@pytest.fixture(params=["small", "published"])
def processor(request: pytest.FixtureRequest) -> Phi3VProcessor:
    return request.getfixturevalue(f"{request.param}_processor")


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures of different shape and a clip of 25 frames at 10 a second."""
    folder = tmp_path_factory.mktemp("images")
    for name, size in {"wide": (300, 100), "tall": (50, 170), "square": (64, 64)}.items():
        Image.effect_noise(size, 60).convert("RGB").save(folder / f"{name}.png")
    write_clip(folder / "clip.mkv", num_frames=25, rate=10)
    return folder
