"""Opening checkpoint folders in the published form.

A folder holds a whole model or an adapter; which one is seen by looking inside, never by its name.
"""

import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import BitsAndBytesConfig
from transformers.utils import is_flash_attn_2_available

from phi3v.model.files import (
    ADAPTER_CONFIG,
    check_exists,
    check_processor_files,
    load_config,
    read_json,
)
from phi3v.model.fitting import check_fit, check_processor_fits
from phi3v.model.modeling import Phi3VForCausalLM
from phi3v.model.pickles import read_seed_weights
from phi3v.model.processing import Phi3VProcessor
from phi3v.model.settings import sampling_only
from phi3v.model.stored import check_adapter_files, check_loaded_weights, check_weight_files

# What the seed project's adapter folders keep their fully trained parts in.
SEED_WEIGHTS = "non_lora_state_dict.bin"
# Named in full: the quantiser matches a pattern at the start or the end of a module's name only.
UNQUANTIZED_MODULES = ["lm_head", "model.vision_embed_tokens"]

Quantization = Literal["4bit", "8bit"]


def is_adapter_folder(path: str | Path) -> bool:
    """Tell whether a folder holds an adapter instead of a whole model."""
    return (Path(path) / ADAPTER_CONFIG).is_file()


def base_of_adapter(path: str | Path) -> str:
    """Read from an adapter folder which base model it belongs to.

    Raises:
        ValueError: The folder does not name a base model.
    """
    settings = read_json(Path(path) / ADAPTER_CONFIG)
    base = settings.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ValueError(
            f"{Path(path) / ADAPTER_CONFIG} names no base_model_name_or_path; write the path of "
            "the base model into it"
        )
    return base


def choose_attention(dtype: torch.dtype | str | None, *, disable_flash_attn2: bool = False) -> str:
    """Pick the attention kernel: flash_attention_2 where it can run, else SDPA."""
    half = dtype in (torch.bfloat16, torch.float16, "auto", None)
    usable = torch.cuda.is_available() and is_flash_attn_2_available() and half
    return "flash_attention_2" if usable and not disable_flash_attn2 else "sdpa"


def quantization_config(
    bits: Literal[4, 8],
    *,
    quant_type: str = "nf4",
    double_quant: bool = True,
    compute_dtype: torch.dtype = torch.bfloat16,
) -> BitsAndBytesConfig:
    """Describe bitsandbytes loading that spares the head, the projection and the tower.

    Args:
        bits: 4 or 8.
        quant_type: ``nf4`` or ``fp4``, for 4 bits.
        double_quant: Quantise the scales too, for 4 bits.
        compute_dtype: Type in which the products run.
    """
    return BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        llm_int8_skip_modules=UNQUANTIZED_MODULES,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def load_model(
    path: str | Path,
    dtype: torch.dtype | str | None = None,
    attn_implementation: str | None = None,
    device: torch.device | str | None = None,
    quantization: Quantization | BitsAndBytesConfig | None = None,
    base: str | Path | None = None,
) -> Any:
    """Load a base, merged, fully trained or adapter folder, ready for generation.

    Args:
        path: Checkpoint folder, or the hub id of a published model.
        dtype: Type of the weights; None keeps the stored one.
        attn_implementation: ``eager``, ``sdpa``, ``flash_attention_2`` or ``flex_attention``; None
            picks flash_attention_2 where it can run and SDPA elsewhere. The checkpoint's own wish
            is ignored.
        device: Where to put the model; None leaves it on the CPU; ``auto`` spreads it over the
            devices.
        quantization: ``4bit`` or ``8bit`` (bitsandbytes), or a full configuration.
        base: Base model of an adapter folder; None takes the one that the folder names.

    Returns:
        ``Phi3VForCausalLM`` in eval mode; for an adapter folder a ``peft.PeftModel`` around it.

    Raises:
        FileNotFoundError: The folder, its config, its base or one of its weight files is missing.
        ValueError: The folder is damaged, incomplete, or holds another model; or it is no adapter
            folder and ``base`` is given.
    """
    check_exists(path)
    if is_adapter_folder(path):
        base = base or base_of_adapter(path)
        _check_base(Path(path), base)
        check_adapter_files(Path(path))
        model = load_model(base, dtype, attn_implementation, device, quantization=quantization)
        return _open_adapter(model, Path(path)).eval()
    _check_no_base(path, base)
    if attn_implementation == "flash_attention_2" and not is_flash_attn_2_available():
        raise ValueError("flash_attention_2 needs flash-attn and a GPU; sdpa runs everywhere")
    config = load_config(path)
    if Path(path).is_dir():
        check_fit(Path(path), config, check_weight_files(Path(path)))
    if isinstance(quantization, str):
        if quantization not in ("4bit", "8bit"):
            raise ValueError(f"quantization is {quantization!r}, expected '4bit' or '8bit'")
        quantization = quantization_config(4 if quantization == "4bit" else 8)
    try:
        loaded: Any = Phi3VForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype or "auto",
            attn_implementation=attn_implementation or choose_attention(dtype or config.dtype),
            device_map=device,
            quantization_config=quantization,
            output_loading_info=True,
            # Told below, by name; the library only points at its log.
            ignore_mismatched_sizes=True,
        )
    # Fields that mean something to the library only end in whatever it trips over.
    except (AttributeError, KeyError, TypeError, IndexError, AssertionError) as error:
        raise ValueError(
            f"{path} cannot be opened: {type(error).__name__}: {error}; a field of its JSON files "
            "is of another type than in the published ones"
        ) from error
    model, report = loaded
    check_loaded_weights(path, report)
    model.generation_config = sampling_only(model.generation_config)
    model.set_stop_tokens()
    return model.eval()


def load_processor(
    path: str | Path, num_crops: int | None = None, base: str | Path | None = None
) -> Phi3VProcessor:
    """Load image processor and tokenizer of a checkpoint or adapter folder.

    Args:
        path: Folder or hub id. An adapter folder without a processor takes its base model's.
        num_crops: Largest number of crops, 1 to 16; None keeps the number stored with the model.
        base: Base model of an adapter folder; None takes the one that the folder names.

    Raises:
        FileNotFoundError: There is no processor.
        ValueError: ``num_crops`` is out of range, a file is damaged, or ``base`` is given with
            something else than an adapter folder.
    """
    check_exists(path)
    if not is_adapter_folder(path):
        _check_no_base(path, base)
    elif not (Path(path) / "preprocessor_config.json").is_file():
        return load_processor(base or base_of_adapter(path), num_crops)
    check_processor_files(Path(path))
    kwargs = {} if num_crops is None else {"num_crops": num_crops}
    try:
        processor = Phi3VProcessor.from_pretrained(path, **kwargs)
    except (OSError, ValueError):
        raise
    # Fields of impossible types end in whatever the library's readers trip over.
    except Exception as error:
        raise ValueError(
            f"the processor in {path} cannot be read: {type(error).__name__}: {error}; copy its "
            "JSON files from the base model"
        ) from error
    model = base or base_of_adapter(path) if is_adapter_folder(path) else path
    if (Path(model) / "config.json").is_file():
        check_processor_fits(path, load_config(model), processor)
    return processor


def _open_adapter(model: Phi3VForCausalLM, folder: Path) -> Any:
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            wrapped = PeftModel.from_pretrained(model, str(folder))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    # Fields of impossible types end in whatever PEFT trips over.
    except Exception as error:
        raise ValueError(
            f"the adapter in {folder} cannot be put on its base model: {error}; is the base "
            "right, and were all files copied?"
        ) from error
    if (folder / SEED_WEIGHTS).is_file():
        weights = read_seed_weights(folder / SEED_WEIGHTS)
        result = wrapped.load_state_dict(weights, strict=False)
        if result.unexpected_keys:
            raise ValueError(
                f"{folder / SEED_WEIGHTS} holds {len(result.unexpected_keys)} weights that the "
                f"model does not have, first {result.unexpected_keys[0]!r}; is the base right?"
            )
    return wrapped


def _check_base(folder: Path, base: str | Path) -> None:
    try:
        check_exists(base)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no checkpoint folder at {base}, the base model of the adapter {folder}; name "
            f"another base, or write its path into {ADAPTER_CONFIG}"
        ) from error
    if is_adapter_folder(base):
        raise ValueError(
            f"{base}, the base model of the adapter {folder}, is an adapter itself; merge it first"
        )


def _check_no_base(path: str | Path, base: str | Path | None) -> None:
    if base is not None:
        raise ValueError(
            f"a base model ({base}) is given, but {path} is a whole model and not an adapter "
            "folder; leave the base out"
        )
