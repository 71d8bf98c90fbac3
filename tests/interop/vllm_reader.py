"""Run by the interpreter that has vLLM: its answers to our prompts and pictures.

usage: vllm_reader.py MODEL_FOLDER CASES_FOLDER TARGET NUM_VISION_LAYERS

vLLM renders the prompt by itself. Of the published code, which a folder carries along or names,
config and processor are replaced: the config by the library's plain one, the processor by ours.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

# Before vllm is imported.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}

import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoProcessor, Phi3Config
from vllm import LLM, SamplingParams
from vllm.model_executor.models import phi3v as vllm_phi3v

from phi3v import Phi3VProcessor


class PlainConfig(Phi3Config):
    """Holds the fields of config.json as the published class does."""

    model_type = "phi3_v"


def answer(engine: LLM, case: dict[str, Any]) -> dict[str, np.ndarray]:
    """Ask for the log-probability of every token after the first, and for 16 greedy tokens."""
    request: dict[str, Any] = {"prompt": case["prompt"]}
    if case["pictures"]:
        request["multi_modal_data"] = {"image": [Image.open(p) for p in case["pictures"]]}
    greedy = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, prompt_logprobs=0)
    (output,) = engine.generate([request], greedy, use_tqdm=False)
    ids = output.prompt_token_ids
    logprobs = [
        places[token].logprob
        for token, places in zip(ids[1:], output.prompt_logprobs[1:], strict=True)
    ]
    return {
        "input_ids": np.array(ids),
        "logprobs": np.array(logprobs, dtype=np.float32),
        "greedy": np.array(output.outputs[0].token_ids),
    }


def main() -> None:
    """Answer the short prompts, then the long ones, which need an engine of their own.

    vLLM uses the long rotary factors for every prompt as soon as its limit is above 4096 tokens.
    """
    model_folder, cases_folder, target = map(Path, sys.argv[1:4])
    vllm_phi3v.CLIP_VIT_LARGE_PATCH14_336_CONFIG.num_hidden_layers = int(sys.argv[4])
    cases = json.loads((cases_folder / "cases.json").read_text(encoding="utf-8"))
    target.mkdir()
    for limit, wanted in ((4096, False), (8192, True)):
        engine = LLM(
            str(model_folder),
            dtype="float32",
            enforce_eager=True,
            max_model_len=limit,
            max_num_batched_tokens=limit,
            max_num_seqs=1,
            limit_mm_per_prompt={"image": 3},
            enable_prefix_caching=False,
        )
        for name, case in cases.items():
            if name.startswith("long") == wanted:
                save_file(answer(engine, case), target / f"{name}.safetensors")
        del engine


if __name__ == "__main__":
    AutoConfig.register("phi3_v", PlainConfig, exist_ok=True)
    AutoProcessor.register(PlainConfig, Phi3VProcessor)
    main()
