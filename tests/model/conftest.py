import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from phi3v import Phi3VForCausalLM, Phi3VProcessor
from phi3v.model.image_processing import Phi3VImageProcessor
from phi3v.model.tiny import tiny_config, tiny_model
from phi3v.model.tokenizer import make_small_tokenizer

# Low enough that a prompt of two small images passes it.
SWITCH = 64


@pytest.fixture(scope="session")
def small_tokenizer() -> Any:
    return make_small_tokenizer()


@pytest.fixture(scope="session")
def processor(small_tokenizer: Any) -> Phi3VProcessor:
    return Phi3VProcessor(
        Phi3VImageProcessor(num_crops=2, crop_size=112, patch_size=14), small_tokenizer
    )


@pytest.fixture
def make_model(small_tokenizer: Any) -> Callable[..., Phi3VForCausalLM]:
    """Make a tiny model whose rotary factors switch at 64 tokens."""

    def make(attention: str = "sdpa", **sizes: Any) -> Phi3VForCausalLM:
        sizes = {
            "hidden_size": 32,
            "num_key_value_heads": 2,
            "vision_hidden_size": 32,
            "original_max_position_embeddings": SWITCH,
        } | sizes
        model = tiny_model(tiny_config(small_tokenizer, **sizes))
        model.set_attn_implementation(attention)
        model.set_stop_tokens()
        return model

    return make


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Three pictures: one crop square, lying, standing."""
    random = np.random.default_rng(1)
    sizes = [(50, 50), (50, 120), (120, 50)]
    return [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


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
def small(small_tokenizer: Any) -> Phi3VProcessor:
    """A processor of 28-pixel crops with a small tokenizer."""
    return Phi3VProcessor(Phi3VImageProcessor(num_crops=2, crop_size=28), small_tokenizer)
