"""Prompts, and what our model says to them, as files that a foreign program's script can read."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.numpy import save_file
from tests.training.test_merge import write_adapter

from phi3v import Phi3VImageProcessor, Phi3VProcessor, load_model, load_processor
from phi3v.model.configuration import PUBLISHED_IMAGE_TOKEN_ID
from phi3v.model.saving import save_checkpoint
from phi3v.model.tiny import tiny_config, tiny_model
from phi3v.model.tokenizer import make_small_tokenizer
from phi3v.training.merge import merge

PUBLISHED_VOCABULARY = 32064
NUM_VISION_LAYERS = 2
NUM_NEW_TOKENS = 16
# Width and height; crops have 336 pixels.
PICTURES = {"square": (300, 320), "tall": (200, 560), "wide": (560, 200)}
# Per prompt: its pictures, and how often a sentence stands in it. The decoder's rotary factors
# switch at 4096 tokens.
PROMPTS = {
    "text": ([], 1),
    "long text": ([], 700),
    "square picture": (["square"], 1),
    "tall picture": (["tall"], 1),
    "wide picture": (["wide"], 1),
    "two pictures": (["square", "tall"], 1),
    "three pictures": (["wide", "square", "wide"], 1),
}


def write_merged_model(folder: Path) -> Path:
    """Write a base of published vocabulary and tower width, an adapter, and what both merge to.

    Other programs take these sizes for granted. The tower has two layers instead of 24.
    """
    letters = np.random.default_rng(0).integers(97, 123, (20_000, 5), dtype=np.uint8)
    words = " ".join(word.tobytes().decode() for word in letters)
    tokenizer = make_small_tokenizer([words], vocab_size=PUBLISHED_IMAGE_TOKEN_ID + 1)
    config = tiny_config(
        tokenizer,
        crop_size=336,
        hidden_size=192,
        num_attention_heads=2,
        vision_hidden_size=1024,
    )
    config.vocab_size = PUBLISHED_VOCABULARY
    config.img_processor["clip_config"] = {"num_hidden_layers": NUM_VISION_LAYERS}
    processor = Phi3VProcessor(Phi3VImageProcessor(num_crops=2), tokenizer)
    save_checkpoint(tiny_model(config), processor, folder / "base")
    write_adapter(folder / "base", folder / "adapter")
    return merge(folder / "adapter", folder / "merged")


def write_cases(model_folder: Path, folder: Path, names: Iterable[str] = PROMPTS) -> Path:
    """Write prompts and pictures, and for each prompt our inputs and answers.

    ``cases.json`` holds by name the prompt and its pictures, ``NAME.safetensors`` the ids with
    ``input_ids`` (T,), the published ``pixel_values`` and ``image_sizes``, and what is expected:
    ``logprobs`` (T - 1,) of every token after the first, ``greedy`` (16,) token ids.
    """
    for name, size in PICTURES.items():
        draw_picture(size).save(folder / f"{name}.png")
    model, processor = load_model(model_folder), load_processor(model_folder)
    listed: dict[str, Any] = {}
    for name in names:
        pictures, repeats = PROMPTS[name]
        tags = "".join(f"<|image_{k}|>\n" for k in range(1, len(pictures) + 1))
        question = "What is shown here? " * repeats
        prompt = f"<|user|>\n{tags}{question}<|end|>\n<|assistant|>\n"
        paths = [str(folder / f"{picture}.png") for picture in pictures]
        listed[name] = {"prompt": prompt, "pictures": paths}
        inputs = processor(prompt, paths or None, return_tensors="pt")
        answers = expected_answers(model, inputs)
        kept = {key: value[0] for key, value in inputs.items() if key == "input_ids"}
        kept |= {k: inputs[k] for k in ("pixel_values", "image_sizes") if k in inputs}
        save_file(
            {k: np.ascontiguousarray(v) for k, v in (kept | answers).items()},
            folder / f"{name}.safetensors",
        )
    (folder / "cases.json").write_text(json.dumps(listed), encoding="utf-8")
    return folder


def draw_picture(size: tuple[int, int]) -> Image.Image:
    """Draw a picture that looks different in every corner."""
    picture = Image.linear_gradient("L").resize(size).convert("RGB")
    canvas = ImageDraw.Draw(picture)
    width, height = size
    canvas.ellipse((0, 0, width // 2, height // 2), fill=(200, 30, 30))
    canvas.rectangle((width // 2, height // 2, width, height), fill=(20, 80, 220))
    return picture


@torch.no_grad()
def expected_answers(model: Any, inputs: Any) -> dict[str, torch.Tensor]:
    """Compute the log-probability of each token of a prompt, and the greedy tokens after it."""
    ids = inputs["input_ids"]
    logprobs = model(**inputs).logits[0, :-1].log_softmax(-1)
    answer = model.generate(
        **inputs, do_sample=False, eos_token_id=-1, max_new_tokens=NUM_NEW_TOKENS
    )
    return {
        "logprobs": logprobs.gather(1, ids[0, 1:, None])[:, 0],
        "greedy": answer[0, ids.shape[1] :],
    }
