"""Adapters: which modules get one, and how PEFT wraps the model."""

import ast
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import LoraVariant
from peft.utils.constants import SAFETENSORS_WEIGHTS_NAME
from peft.utils.save_and_load import load_peft_weights
from safetensors.torch import save_file
from torch import Tensor, nn

from phi3v.model.low_rank import add_low_rank
from phi3v.model.modeling import Phi3VForCausalLM
from phi3v.training.arguments import LoraArguments
from phi3v.training.parts import PROJECTION, TOWER, UNUSED, Plan, part_of

EMBED_TOKENS, LM_HEAD = "model.embed_tokens", "lm_head"
_PRESETS = {
    "all": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "embed_tokens", "lm_head"),
    "attention": ("qkv_proj", "o_proj"),
    "mlp": ("gate_up_proj", "down_proj"),
}


def parse_excluded(text: str | None) -> list[str]:
    """Read ``--lora_namespan_exclude``: a Python list, or names with commas between them.

    Raises:
        ValueError: The text is neither.
    """
    if text is None or not text.strip():
        return []
    if not text.strip().startswith("["):
        return [name.strip() for name in text.split(",") if name.strip()]
    try:
        names = ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise ValueError(
            f"--lora_namespan_exclude is {text!r}, expected a list such as "
            "\"['lm_head', 'embed_tokens']\""
        ) from error
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"--lora_namespan_exclude is {text!r}, expected a list of names")
    return names


def target_modules(model: Any, plan: Plan, lora: LoraArguments) -> list[str]:
    """List the modules that get an adapter, by full name, in the model's order.

    Raises:
        ValueError: Nothing is left, a name to exclude matches nothing, or only one of token table
            and head would get an adapter.
    """
    excluded = parse_excluded(lora.lora_namespan_exclude)
    used = model.config.num_vision_layers_used
    names = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding) or "position_embedding" in name:
            continue
        part = part_of(f"{name}.weight", used)
        if part == UNUSED or plan.of(part) != "LoRA":
            continue
        if part not in (TOWER, PROJECTION) and not name.endswith(_PRESETS[lora.lora_preset]):
            continue
        if not any(_matches(pattern, name) for pattern in excluded):
            names.append(name)
    if lora.num_lora_modules > 0:
        names = names[-lora.num_lora_modules :]
    if not names:
        raise ValueError(
            "--lora_enable leaves no module to adapt: --lora_namespan_exclude "
            f"{lora.lora_namespan_exclude} excludes all of them"
        )
    if (EMBED_TOKENS in names) != (LM_HEAD in names):
        found, absent = (
            (EMBED_TOKENS, LM_HEAD) if EMBED_TOKENS in names else (LM_HEAD, EMBED_TOKENS)
        )
        raise ValueError(
            f"{found} would get an adapter but {absent} would not: what the model reads and what "
            "it writes for a token would drift apart. Adapt both, or exclude both with "
            "--lora_namespan_exclude \"['lm_head', 'embed_tokens']\""
        )
    return names


def _matches(pattern: str, name: str) -> bool:
    # The vision module's own name holds "embed_tokens"; the token table is meant.
    return name == EMBED_TOKENS if pattern == "embed_tokens" else pattern in name


def short_names(model: nn.Module, names: list[str]) -> list[str]:
    """Shorten module names to their last word where that selects exactly the same modules."""
    suffixes = sorted({name.rsplit(".", 1)[-1] for name in names})
    selected = [
        name
        for name, _ in model.named_modules()
        if any(name == suffix or name.endswith(f".{suffix}") for suffix in suffixes)
    ]
    return suffixes if sorted(selected) == sorted(names) else names


def lora_config(model: nn.Module, plan: Plan, lora: LoraArguments) -> LoraConfig:
    """Describe the adapters and the fully trained modules beside them for PEFT."""
    fully_trained = None
    if plan.vision == "full":
        # The separators are bare parameters of this module, so it is kept as a whole.
        fully_trained = ["vision_embed_tokens"]
    elif plan.projection == "full":
        fully_trained = ["img_projection"]
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.lora_rank,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        bias=lora.lora_bias,
        target_modules=short_names(model, target_modules(model, plan, lora)),
        modules_to_save=fully_trained,
        use_dora=lora.use_dora,
        use_rslora=lora.use_rslora,
        init_lora_weights=True if lora.lora_init == "default" else lora.lora_init,
    )


def add_adapters(model: Phi3VForCausalLM, plan: Plan, lora: LoraArguments) -> PeftModel:
    """Wrap the model.

    Raises:
        ValueError: The flags select no sensible modules, or ``--lora_weight_path`` does not fit
            them.
    """
    wrapped = get_peft_model(model, lora_config(model, plan, lora))
    if lora.lora_weight_path:
        _load_weights(wrapped, Path(lora.lora_weight_path))
    return wrapped


def _load_weights(model: Any, folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"--lora_weight_path {folder} is no folder")
    stored = load_peft_weights(str(folder), device="cpu")
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    missing = [name for name in own if "lora_" in name and name not in stored]
    # Compared by name here: PEFT would write weights without a place into the base itself.
    surplus = [name for name in stored if name not in own]
    misfit = [name for name in stored if name in own and stored[name].shape != own[name].shape]
    if missing or surplus or misfit:
        raise ValueError(
            f"--lora_weight_path {folder} does not fit the flags of this run: of its weights "
            f"{len(missing)} are missing, {len(surplus)} have no place and {len(misfit)} have "
            f"another shape, first {[*missing, *surplus, *misfit][0]!r}; use the flags that the "
            "adapter was made with"
        )
    set_peft_model_state_dict(model, stored)


class _Fused(LoraVariant):
    """Tells a layer of PEFT's to add its product to that of the base without copies."""

    def __init__(self, *, in_place: bool) -> None:
        self.in_place = in_place

    @staticmethod
    def init(*_: Any, **__: Any) -> None:
        """Nothing is kept beside the adapter's own matrices."""

    @staticmethod
    def forward(
        module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: Any
    ) -> Tensor:
        own: Any = module.lora_variant[active_adapter]
        first, second = module.lora_A[active_adapter], module.lora_B[active_adapter]
        low = first(module.lora_dropout[active_adapter](x))
        scaling = module.scaling[active_adapter]
        is_partitioned = hasattr(second.weight, "ds_id")
        if low.dtype != result.dtype or second.bias is not None or is_partitioned:
            return result + second(low) * scaling
        return add_low_rank(result, low, second.weight, scaling, in_place=own.in_place)

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return orig_weight + module.get_delta_weight(active_adapter).to(orig_weight.dtype)

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        orig_weight.data += module.get_delta_weight(active_adapter)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return orig_weight - module.get_delta_weight(active_adapter).to(orig_weight.dtype)


def fuse_products(model: nn.Module, *, in_place: bool) -> None:
    """Let adapters of linear layers, DoRA's excepted, add up their products without copies.

    Args:
        model: Wrapped model whose adapters this process holds wholly.
        in_place: Write over the products of the base, which nothing may have kept.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for adapter in module.lora_A.keys() - module.lora_variant.keys():
                module.lora_variant[adapter] = _Fused(in_place=in_place)


def is_wrapped(model: Any) -> bool:
    """Tell whether a model carries adapters."""
    return isinstance(model, PeftModel)


def save_adapter(
    model: PeftModel, folder: str | Path, *, state_dict: dict[str, Any] | None = None
) -> None:
    """Write adapter weights and fully trained parts as one folder that PEFT itself loads."""
    # The token table under an adapter is the base's own; without this PEFT would store a copy.
    model.save_pretrained(str(folder), state_dict=state_dict, save_embedding_layers=False)


class AdapterCopy:
    """What ``save_adapter`` writes, apart from a model that is trained on meanwhile.

    Args:
        model: With adapters that this process holds wholly.
        copy_tensors: Copies a dictionary of tensors.
    """

    def __init__(self, model: PeftModel, copy_tensors: Callable[[Any], dict[str, Any]]) -> None:
        self._model = model
        self._config = copy.copy(model.peft_config["default"])
        self._config.inference_mode = True
        self._weights = copy_tensors(get_peft_model_state_dict(model, save_embedding_layers=False))

    def save(self, folder: Path) -> None:
        """Write weights, configuration and model card; the model is asked for the card only."""
        save_file(self._weights, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        self._config.save_pretrained(str(folder))
        self._model.create_or_update_model_card(str(folder))
