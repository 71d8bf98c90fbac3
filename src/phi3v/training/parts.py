"""Parts of the model as the unit of control: what trains, how, and at which learning rate.

The table is read off the model itself, so that it shows what is, not what was asked.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from phi3v.training.arguments import LoraArguments, ModelArguments, Phi3VTrainingArguments

Method = Literal["frozen", "full", "LoRA"]

LANGUAGE, EMBEDDINGS, HEAD = "language model", "token embeddings", "head"
TOWER, SEPARATORS, PROJECTION = "vision tower", "separators", "image projection"
UNUSED = "vision tower, unused"
PARTS = (LANGUAGE, EMBEDDINGS, HEAD, TOWER, SEPARATORS, PROJECTION, UNUSED)
VISION_SIDE = (TOWER, SEPARATORS, PROJECTION)

_LAYER_OF_TOWER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Plan:
    """How each part is to be trained."""

    language: Method
    vision: Method
    projection: Method

    def of(self, part: str) -> Method:
        """Return the method of a part; the layers that are never run are always frozen."""
        if part == UNUSED:
            return "frozen"
        if part in (TOWER, SEPARATORS):
            return "frozen" if part == SEPARATORS and self.vision == "LoRA" else self.vision
        return self.projection if part == PROJECTION else self.language


@dataclass(frozen=True)
class Row:
    """One line of the table of parts; counts are numbers, not bytes."""

    part: str
    method: str
    trainable: int
    total: int
    learning_rate: float | None


def plan_parts(model: ModelArguments, lora: LoraArguments) -> Plan:
    """Read the plan off the flags; the flags have been checked."""
    language: Method = "LoRA" if lora.lora_enable else "frozen" if model.freeze_llm else "full"
    vision: Method = "frozen" if model.freeze_vision_tower else "full"
    if lora.vision_lora:
        vision = "LoRA"
    projection: Method = "full" if model.tune_img_projector else "frozen"
    if lora.vision_lora and not model.tune_img_projector:
        projection = "LoRA"
    return Plan(language, vision, projection)


def part_of(name: str, num_vision_layers_used: int) -> str:
    """Tell to which part a parameter belongs, by its name, wrapped by PEFT or not."""
    if "img_projection" in name:
        return PROJECTION
    if name.endswith(("glb_GN", "sub_GN")):
        return SEPARATORS
    if "img_processor" in name:
        layer = _LAYER_OF_TOWER.search(name)
        unused = layer is not None and int(layer.group(1)) >= num_vision_layers_used
        return UNUSED if unused or "post_layernorm" in name else TOWER
    if "embed_tokens" in name:
        return EMBEDDINGS
    return HEAD if "lm_head" in name else LANGUAGE


def own_parameters(model: Any) -> Iterator[tuple[str, nn.Parameter, str]]:
    """Walk over (name, parameter, part), without the originals that PEFT keeps behind a copy."""
    used = model.config.num_vision_layers_used
    for name, parameter in model.named_parameters():
        if ".original_module." not in name:
            yield name, parameter, part_of(name, used)


def freeze_parts(model: Any, plan: Plan, *, bias: str = "none") -> None:
    """Make exactly the planned parameters trainable.

    Adapters of PEFT stay trainable; copies in ``modules_to_save`` train where their part trains
    fully.

    Args:
        model: Bare model, or one wrapped by PEFT.
        plan: Method of each part.
        bias: ``--lora_bias``; biases train in parts that carry adapters.
    """
    wrapped = any("lora_" in name for name, _ in model.named_parameters())
    used = model.config.num_vision_layers_used

    def trains(name: str, parameter: nn.Parameter) -> bool:
        if ".original_module." in name or not parameter.is_floating_point():
            return False
        if "lora_" in name:
            return True
        method = plan.of(part_of(name, used))
        if method == "full":
            return not wrapped or ".modules_to_save." in name
        # PEFT has already chosen among the biases; those of frozen parts stay frozen.
        biases = method == "LoRA" and bias != "none" and name.endswith("bias")
        return biases and parameter.requires_grad

    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains(name, parameter))


def cast_parts(model: nn.Module, compute_dtype: torch.dtype) -> None:
    """Keep what trains in float32 and the frozen rest in the compute type.

    Small updates vanish in 16-bit weights. Quantised weights are left as they are.
    """
    for parameter in model.parameters():
        if not parameter.is_floating_point() or hasattr(parameter, "ds_id"):
            continue
        parameter.data = parameter.data.to(
            torch.float32 if parameter.requires_grad else compute_dtype
        )


def learning_rate_of(part: str, training: Phi3VTrainingArguments) -> float:
    """Return the learning rate of a part."""
    own = None
    if part in (TOWER, SEPARATORS):
        own = training.vision_lr
    elif part == PROJECTION:
        own = training.projector_lr
    return training.learning_rate if own is None else own


def table_of_parts(
    model: nn.Module, training: Phi3VTrainingArguments, lora: LoraArguments
) -> list[Row]:
    """Count what trains, part by part."""
    rows = []
    walked = list(own_parameters(model))
    for part in PARTS:
        own = [(name, parameter) for name, parameter, its_part in walked if its_part == part]
        if not own:
            continue
        trained = [(name, parameter) for name, parameter in own if parameter.requires_grad]
        adapters = any("lora_" in name for name, _ in trained)
        kind = f"{'DoRA' if lora.use_dora else 'LoRA'} r={lora.lora_rank}"
        rows.append(
            Row(
                part=part,
                method=kind if adapters else "full" if trained else "frozen",
                trainable=sum(num_elements(parameter) for _, parameter in trained),
                total=sum(num_elements(parameter) for _, parameter in own),
                learning_rate=learning_rate_of(part, training) if trained else None,
            )
        )
    return rows


def num_elements(parameter: Any) -> int:
    """Count the numbers of a parameter, also of a sharded or a 4-bit one."""
    if hasattr(parameter, "ds_numel"):
        return parameter.ds_numel
    packed = type(parameter).__name__ == "Params4bit" and parameter.dtype == torch.uint8
    return parameter.numel() * (2 if packed else 1)


def format_table(rows: list[Row]) -> str:
    """Lay the table out for a terminal."""
    lines = [("part", "method", "trainable", "of", "learning rate")]
    for row in rows:
        rate = "-" if row.learning_rate is None else f"{row.learning_rate:g}"
        lines.append((row.part, row.method, f"{row.trainable:,}", f"{row.total:,}", rate))
    trainable, total = (sum(getattr(row, name) for row in rows) for name in ("trainable", "total"))
    lines.append(("all", "", f"{trainable:,}", f"{total:,}", ""))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    left = (True, True, False, False, False)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if to_left else cell.rjust(width)
            for cell, width, to_left in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in lines
    )
