"""Reading the golden vectors of the original code."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from phi3v.model.image_processing import Phi3VImageProcessor
from phi3v.model.loading import load_model

CHECKPOINTS = ("p3", "p35")
# Spec section 10: float32 on a CPU.
LOGITS = {"atol": 2e-4, "rtol": 1e-4}
# The original picks the rope list by the padded length of the batch; ours goes by the row (D6).
PADDED_LENGTH_DECIDES = ("batch2_images_1_2",)


@cache
def index(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "cases.json").read_text())


def case(golden: Path, case_id: str) -> dict[str, Any]:
    return next(item for item in index(golden)["cases"] if item["id"] == case_id)


def tensors(golden: Path, case_id: str) -> dict[str, Tensor]:
    return load_file(golden / "cases" / f"{case_id}.safetensors")


def model(golden: Path, checkpoint: str, **kwargs: Any) -> Any:
    kwargs.setdefault("attn_implementation", "eager")
    return load_model(golden / "checkpoints" / checkpoint, **kwargs)


def pixels(golden: Path, item: dict[str, Any], pixel_format: str = "published") -> dict[str, Any]:
    """Pixels and padded sizes of all images of a case, or nothing."""
    names = [name for row in item["images"] for name in ([row] if isinstance(row, str) else row)]
    if not names:
        return {}
    pictures = [Image.open(golden / "images" / f"{name}.png") for name in names]
    processor = Phi3VImageProcessor(num_crops=item["num_crops"])
    batch = processor(pictures, pixel_format=pixel_format, return_tensors="pt")
    return {"pixel_values": batch["pixel_values"], "image_sizes": batch["image_sizes"]}


def inputs(golden: Path, case_id: str, pixel_format: str = "published") -> dict[str, Any]:
    """Model inputs of a forward case, labels left out."""
    item, stored = case(golden, case_id), tensors(golden, case_id)
    names = ("input_ids", "attention_mask", "position_ids")
    ready: dict[str, Any] = {name: stored[name] for name in names if name in stored}
    ready |= pixels(golden, item, pixel_format)
    if case_id.split("_", 1)[1] in PADDED_LENGTH_DECIDES:
        rows, length = ready["input_ids"].shape
        ready["document_lengths"] = torch.full((rows, 1), length)
    return ready
