"""What a person does with a folder, on a small prompt with a picture: it works, or says why not."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from phi3v import load_model, load_processor
from phi3v.model.processing import Phi3VProcessor
from phi3v.training.merge import merge

# What README and SECURITY.md promise: a fault of a file is one of these.
DOCUMENTED = (ValueError, OSError)
PROMPT = "<|user|>\n<|image_1|>\nWhat is <s> shown?<|end|>\n<|assistant|>\n"
PICTURE = np.arange(40 * 90 * 3, dtype=np.int64).astype(np.uint8).reshape(40, 90, 3)


def use_processor(folder: Path) -> None:
    """Load the processor, read a prompt with a picture, and write it back."""
    processor = load_processor(folder)
    for pixel_format in ("published", "compact"):
        inputs = processor(PROMPT, [PICTURE], return_tensors="pt", pixel_format=pixel_format)
    processor.apply_chat_template([{"role": "user", "content": "Hello"}])
    processor.tokenizer.decode(inputs["input_ids"][0])


def use_model(folder: Path, processor: Phi3VProcessor) -> None:
    """Load a model or an adapter, and let it answer with two tokens."""
    answer(load_model(folder), processor)


def use_adapter(folder: Path, processor: Phi3VProcessor, target: Path) -> None:
    """Load an adapter, and merge it too."""
    use_model(folder, processor)
    merge(folder, target, overwrite=True)


@torch.no_grad()
def answer(model: Any, processor: Phi3VProcessor) -> None:
    """Compute logits, and generate two tokens."""
    inputs = processor(PROMPT, [PICTURE], return_tensors="pt")
    model(**inputs)
    model.generate(**inputs, max_new_tokens=2)
