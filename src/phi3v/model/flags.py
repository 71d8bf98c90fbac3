"""Flags of the commands that load a model, and what they do."""

import argparse
import logging
from importlib.util import find_spec
from typing import Any

import torch

from phi3v.model.loading import load_model

logger = logging.getLogger(__name__)


def add_model_flags(parser: argparse.ArgumentParser, *, is_required: bool = True) -> None:
    """Add the group of flags that say which model to load, and how."""
    model = parser.add_argument_group("the model")
    add_flag(
        model,
        "model-path",
        required=is_required,
        help="base, merged, fully trained or adapter folder",
    )
    add_flag(
        model, "model-base", help="base of an adapter folder, instead of the one that it names"
    )
    add_flag(model, "device", help="cpu, cuda, cuda:1, auto ...; default: cuda where there is one")
    add_flag(model, "dtype", choices=["auto", "bfloat16", "float16", "float32"], default="auto",
         help="type of the weights; auto is the stored one")  # fmt: skip
    add_flag(model, "load-8bit", action="store_true", help="quantise to 8 bits (bitsandbytes)")
    add_flag(model, "load-4bit", action="store_true", help="quantise to 4 bits (bitsandbytes)")
    add_flag(model, "attn-implementation", choices=["eager", "sdpa", "flash_attention_2",
         "flex_attention"], help="default: flash_attention_2 where it runs, else sdpa")  # fmt: skip
    add_flag(model, "disable-flash-attention", action="store_true", help="use sdpa")
    add_flag(model, "num-crops", type=int, help="1 to 16; default: as stored with the model")


def add_flag(group: Any, name: str, **options: Any) -> None:
    """Add one flag in both of its spellings."""
    spellings = dict.fromkeys((f"--{name}", f"--{name.replace('-', '_')}"))
    group.add_argument(*spellings, **options)


def check_model_flags(arguments: argparse.Namespace) -> None:
    """Refuse flags that contradict each other.

    Raises:
        ValueError: Naming both.
    """
    if arguments.load_8bit and arguments.load_4bit:
        raise ValueError("--load-8bit and --load-4bit exclude each other; give one of them")
    if arguments.disable_flash_attention and arguments.attn_implementation == "flash_attention_2":
        raise ValueError(
            "--disable-flash-attention contradicts --attn-implementation flash_attention_2"
        )


def add_compile_flag(group: Any) -> None:
    """Add the flag for compiled decoding."""
    add_flag(group, "compile", action="store_true",
         help="compile decoding steps and keep a cache of fixed length (CUDA); the first answers "
         "wait for the compiler")  # fmt: skip


def check_compile_flag(arguments: argparse.Namespace) -> None:
    """Refuse compiled decoding where it cannot be honoured, and choose an attention that can be.

    Raises:
        ValueError: There is no CUDA device, or the attention cannot be compiled.
    """
    if not arguments.compile:
        return
    device = choose_device(arguments.device)
    if not device.startswith("cuda"):
        raise ValueError(
            f"--compile needs a CUDA device, but the model is loaded to {device}; leave it out"
        )
    if arguments.attn_implementation == "flash_attention_2":
        raise ValueError(
            "--compile contradicts --attn-implementation flash_attention_2, which breaks compiled "
            "steps apart; leave one of them out"
        )
    arguments.attn_implementation = arguments.attn_implementation or "sdpa"


def choose_device(device: str | None) -> str:
    """Return the device to load to; cuda where there is one and none is asked for.

    Raises:
        ValueError: There is no such device.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "auto":
        return device
    try:
        kind, index = torch.device(device).type, torch.device(device).index
    except RuntimeError:
        raise ValueError(f"--device is {device!r}; expected cpu, cuda, cuda:1, auto") from None
    if kind == "cuda" and (index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ValueError(
            f"--device is {device!r}, but {found} CUDA device(s) can be used; leave --device out "
            "or write --device cpu"
        )
    return device


def load_from_flags(arguments: argparse.Namespace) -> Any:
    """Load the model that the flags describe."""
    quantization: Any = "8bit" if arguments.load_8bit else "4bit" if arguments.load_4bit else None
    if quantization and find_spec("bitsandbytes") is None:
        raise ValueError(
            f"--load-{quantization} needs bitsandbytes, which is not installed: "
            "pip install 'phi3v[qlora]'"
        )
    attention = arguments.attn_implementation
    if arguments.disable_flash_attention and attention is None:
        logger.warning("FlashAttention 2 is off; attention runs with sdpa.")
        attention = "sdpa"
    return load_model(
        arguments.model_path,
        None if arguments.dtype == "auto" else getattr(torch, arguments.dtype),
        attention,
        choose_device(arguments.device),
        quantization,
        arguments.model_base,
    )
