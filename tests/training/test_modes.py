"""Every training mode: what changed is what the table says, and what is saved is what trained."""

import json
from collections.abc import Callable

import pytest
import torch
from PIL import Image
from tests.training.conftest import Run, check_table, logits_of

from phi3v import load_model
from phi3v.model.loading import quantization_config

LANGUAGE = {
    "full": [],
    "lora": ["--lora_enable"],
    "dora": ["--lora_enable", "--use_dora"],
    "rslora": ["--lora_enable", "--use_rslora"],
    "pissa": [
        *("--lora_enable", "--lora_init", "pissa"),
        *("--lora_namespan_exclude", "['lm_head', 'embed_tokens']"),
    ],
    "nf4": ["--lora_enable", "--bits", "4"],
    "fp4": ["--lora_enable", "--bits", "4", "--quant_type", "fp4", "--double_quant", "False"],
    "8bit": ["--lora_enable", "--bits", "8"],
}
VISION = {
    "frozen": ["--freeze_vision_tower"],
    "full": [],
    "lora": ["--freeze_vision_tower", "--vision_lora"],
}
PROJECTION = {"frozen": ["--tune_img_projector", "False"], "full": []}
CASES = [
    (language, vision, projection)
    for language in LANGUAGE
    for vision in VISION
    for projection in PROJECTION
    if (language, vision) != ("full", "lora")
]

pytestmark = pytest.mark.slow


def trained_parts(run: Run) -> set[str]:
    rows = json.loads((run.folder / "parts.json").read_text())
    return {row["part"] for row in rows if row["trainable"]}


@pytest.mark.parametrize(("language", "vision", "projection"), CASES)
def test_mode_trains_exactly_the_parts_of_its_table(
    start: Callable[..., Run],
    picture: Image.Image,
    language: str,
    vision: str,
    projection: str,
) -> None:
    run = start(*LANGUAGE[language], *VISION[vision], *PROJECTION[projection])

    check_table(run)
    expected = {"language model"}
    if language != "pissa":
        expected |= {"token embeddings", "head"}
    if vision != "frozen":
        expected.add("vision tower")
    if vision == "full":
        expected.add("separators")
    if projection == "full" or vision == "lora":
        expected.add("image projection")
    assert trained_parts(run) == expected
    quantization = None
    if language in ("nf4", "fp4", "8bit"):
        quantization = quantization_config(
            8 if language == "8bit" else 4,
            quant_type="fp4" if language == "fp4" else "nf4",
            double_quant=language != "fp4",
            compute_dtype=torch.float32,
        )
    loaded = load_model(run.folder, dtype=torch.float32, quantization=quantization)
    torch.testing.assert_close(
        logits_of(loaded, run.trainer.processor, picture),
        logits_of(run.model, run.trainer.processor, picture),
        atol=1e-5,
        rtol=1e-5,
    )


def test_frozen_language_model_leaves_the_vision_side(start: Callable[..., Run]) -> None:
    run = start("--freeze_llm")
    check_table(run)
    assert trained_parts(run) == {"vision tower", "separators", "image projection"}


def test_lora_freezes_neither_vision_tower_nor_projection(start: Callable[..., Run]) -> None:
    changed = start("--lora_enable", "--freeze_llm").changed()
    for part in ("q_proj.weight", "img_projection.0.weight", "glb_GN", "sub_GN", "lora_B.weight"):
        assert any(name.replace(".default", "").endswith(part) for name in changed), part


def test_layers_that_never_run_are_frozen_and_saved(
    start: Callable[..., Run], base_folder: str
) -> None:
    run = start()
    unused = "model.vision_embed_tokens.img_processor.vision_model.encoder.layers.2."
    assert not [name for name in run.changed() if name.startswith(unused)]
    saved, base = load_model(run.folder).state_dict(), load_model(base_folder).state_dict()
    assert saved.keys() == base.keys()
    for name in saved:
        if name.startswith(unused) or "post_layernorm" in name:
            assert torch.equal(saved[name], base[name])
