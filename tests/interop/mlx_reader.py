"""Run by the interpreter that has MLX-VLM: its answers to our prompts, from our ids and pixels.

usage: mlx_reader.py MODEL_FOLDER CASES_FOLDER TARGET NUM_VISION_LAYERS NAME...
"""

import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_vlm.models.cache import make_prompt_cache
from mlx_vlm.models.phi3_v.vision import VisionModel
from mlx_vlm.utils import load_model
from safetensors.numpy import load_file, save_file


def answer(model: Any, case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compute the log-probability of every token after the first, and the greedy tokens."""
    ids = case["input_ids"].astype(np.int64)
    inputs: dict[str, Any] = {}
    if "pixel_values" in case:
        inputs = {k: mx.array(case[k]) for k in ("pixel_values", "image_sizes")}
        # This program knows image places by their negative ids, as the published code does.
        places = np.where(ids == IMAGE_TOKEN, -1, ids)
    else:
        places = ids
    cache = make_prompt_cache(model)
    logits = model(mx.array(places[None]), cache=cache, **inputs).logits[0]
    logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    chosen = mx.take_along_axis(logprobs[:-1], mx.array(ids[1:, None]), axis=-1)[:, 0]
    tokens = []
    for _ in range(len(case["greedy"])):
        tokens.append(int(mx.argmax(logits[-1])))
        logits = model(mx.array([[tokens[-1]]]), cache=cache).logits[0]
    return {"logprobs": np.array(chosen), "greedy": np.array(tokens)}


IMAGE_TOKEN = 32044
model_folder, cases_folder, target = map(Path, sys.argv[1:4])
VisionModel.CLIP_VIT_LARGE_PATCH14_336_CONFIG.num_hidden_layers = int(sys.argv[4])
mx.set_default_device(mx.cpu)
network = load_model(model_folder)
target.mkdir()
for name in sys.argv[5:]:
    answers = answer(network, load_file(cases_folder / f"{name}.safetensors"))
    save_file(answers, target / f"{name}.safetensors")
