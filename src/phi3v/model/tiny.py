"""A tiny random checkpoint in the published form, for tests, demos and trying things out.

Same code path as the published models: only the sizes differ.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast

from phi3v.model.configuration import CLIP_LARGE_336, Phi3VConfig
from phi3v.model.image_processing import Phi3VImageProcessor
from phi3v.model.modeling import Phi3VForCausalLM
from phi3v.model.processing import Phi3VProcessor
from phi3v.model.saving import save_checkpoint
from phi3v.model.text import IMAGE_TOKEN
from phi3v.model.tokenizer import load_tokenizer, make_small_tokenizer

PUBLISHED_NUM_CROPS = {"phi3": 16, "phi35": 4}


def tiny_config(
    tokenizer: PreTrainedTokenizerFast,
    *,
    family: str = "phi35",
    crop_size: int = 112,
    hidden_size: int = 128,
    num_hidden_layers: int = 2,
    num_attention_heads: int = 4,
    num_key_value_heads: int | None = None,
    vision_hidden_size: int = 64,
    num_vision_layers: int = 3,
    original_max_position_embeddings: int = 4096,
) -> Phi3VConfig:
    """Describe a tiny model with the published fields.

    Args:
        tokenizer: Gives the vocabulary size and the special ids.
        family: ``phi3`` or ``phi35``; they differ in the stored crops and the sliding window.
        crop_size: Side of a crop in pixels, a multiple of 28; small crops make a fast tower.
        hidden_size: Width of the decoder.
        num_hidden_layers: Layers of the decoder.
        num_attention_heads: Heads of the decoder.
        num_key_value_heads: Key heads; None means as many as heads.
        vision_hidden_size: Width of the tower, heads of 16.
        num_vision_layers: Layers of the tower, the last of them never run.
        original_max_position_embeddings: Length at which the rotary factors switch.

    Raises:
        ValueError: Unknown family, or sizes that do not divide.
    """
    if family not in PUBLISHED_NUM_CROPS:
        raise ValueError(f"family is {family!r}, expected one of {sorted(PUBLISHED_NUM_CROPS)}")
    half_head = hidden_size // num_attention_heads // 2
    steps = [index / max(half_head - 1, 1) for index in range(half_head)]
    vision = {
        "hidden_size": vision_hidden_size,
        "intermediate_size": 2 * vision_hidden_size,
        "num_hidden_layers": num_vision_layers,
        "num_attention_heads": max(vision_hidden_size // 16, 1),
        "image_size": crop_size,
        "patch_size": 14,
    }
    return Phi3VConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_key_value_heads,
        max_position_embeddings=32 * original_max_position_embeddings,
        original_max_position_embeddings=original_max_position_embeddings,
        rope_scaling={
            "type": "su",
            "short_factor": [1.0 + 0.1 * step for step in steps],
            "long_factor": [1.0 + 31.0 * step for step in steps],
        },
        sliding_window={"phi3": 131072, "phi35": 262144}[family],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids("</s>"),
        pad_token_id=tokenizer.pad_token_id,
        image_token_id=tokenizer.added_tokens_encoder[IMAGE_TOKEN],
        initializer_range=hidden_size**-0.5,
        embd_layer={
            "embedding_cls": "image",
            "hd_transform_order": "sub_glb",
            "projection_cls": "mlp",
            "use_hd_transform": True,
            "with_learnable_separator": True,
        },
        img_processor={
            "name": "clip_vision_model",
            "model_name": CLIP_LARGE_336,
            "image_dim_out": vision_hidden_size,
            "num_img_tokens": 144,
            "clip_config": vision,
        },
        architectures=["Phi3VForCausalLM"],
        dtype="float32",
    )


@torch.no_grad()
def tiny_model(config: Phi3VConfig, seed: int = 0) -> Phi3VForCausalLM:
    """Make a random model that can learn.

    At the published scale of 0.02 a narrow tower does not: its positions drown in the patches.
        Every matrix
    starts at one over the root of its input width instead, and the positions at 0.5.
    """
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = Phi3VForCausalLM(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            fan_in = parameter[0].numel()
            std = 1.0 if "embed" in name.rsplit(".", 2)[-2] else fan_in**-0.5
            parameter.normal_(0.0, std)
    vision = model.model.vision_embed_tokens
    embeddings = vision.img_processor.vision_model.embeddings
    embeddings.patch_embedding.weight.normal_(
        0.0, embeddings.patch_embedding.weight[0].numel() ** -0.5
    )
    embeddings.position_embedding.weight.normal_(0.0, 0.5)
    vision.glb_GN.normal_(0.0, 0.5)
    vision.sub_GN.normal_(0.0, 0.5)
    torch.set_rng_state(generator_state)
    return model.eval()


def write_tiny_checkpoint(
    folder: str | Path,
    *,
    seed: int = 0,
    num_crops: int | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    **sizes: Any,
) -> Path:
    """Write a tiny random checkpoint with processor and tokenizer.

    Args:
        folder: Target; made when absent.
        seed: Decides the weights.
        num_crops: Stored with the processor; None takes the family's published number.
        tokenizer: None makes a small one of its own.
        **sizes: Handed to ``tiny_config``.

    Returns:
        The folder.

    Raises:
        FileExistsError: The folder is not empty.
        ValueError: A size is impossible.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not empty; name a new folder")
    tokenizer = tokenizer or make_small_tokenizer()
    config = tiny_config(tokenizer, **sizes)
    model = tiny_model(config, seed)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.stop_token_ids,
        pad_token_id=config.pad_token_id,
    )
    image_processor = Phi3VImageProcessor(
        num_crops=PUBLISHED_NUM_CROPS[sizes.get("family", "phi35")]
        if num_crops is None
        else num_crops,
        crop_size=config.crop_size,
        patch_size=config.patch_size,
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(model, Phi3VProcessor(image_processor, tokenizer), folder)
    return folder


def main(argv: list[str]) -> int:
    """Run ``phi3v init-tiny``."""
    parser = argparse.ArgumentParser(
        prog="phi3v init-tiny",
        description="Write a tiny random checkpoint in the published form.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", metavar="OUT", help="folder to write, new or empty")
    parser.add_argument("--family", choices=sorted(PUBLISHED_NUM_CROPS), default="phi35")
    parser.add_argument("--crop_size", type=int, default=112, help="side of a crop in pixels")
    parser.add_argument("--num_crops", type=int, help="stored with the processor")
    parser.add_argument("--hidden_size", type=int, default=128, help="width of the decoder")
    parser.add_argument("--num_hidden_layers", type=int, default=2, help="layers of the decoder")
    parser.add_argument("--vision_hidden_size", type=int, default=64, help="width of the tower")
    parser.add_argument("--num_vision_layers", type=int, default=3, help="layers of the tower")
    parser.add_argument("--tokenizer", help="folder with the tokenizer.json to use")
    parser.add_argument("--seed", type=int, default=0, help="decides the weights")
    arguments = vars(parser.parse_args(argv))
    folder, source = arguments.pop("folder"), arguments.pop("tokenizer")
    tokenizer = load_tokenizer(source) if source else None
    write_tiny_checkpoint(folder, tokenizer=tokenizer, **arguments)
    print(f"wrote {folder}; try: phi3v train --model_id {folder} --data_path DATA.json")
    return 0
