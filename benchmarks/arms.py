"""The ways to make the same training step.

``original`` and ``hf`` (the library's Trainer defaults on our model) pad rows and send float
pixels; ``ours`` packs and sends uint8 crops. ``original-sdpa`` is the original on the kernel that
is closest to the one of its GPU; ``ours-selective`` and ``ours-full`` keep less of each layer.
"""

from collections.abc import Callable
from typing import Any

import torch
from peft import get_peft_model
from torch import Tensor, nn

from benchmarks.models import IMAGE_TOKEN_ID, Size, make_model, model_config
from benchmarks.original import original_batch, original_loss
from phi3v.data.collator import pack_row
from phi3v.data.encoding import Example
from phi3v.model.configuration import Phi3VConfig
from phi3v.model.recompute import Regime, set_regime
from phi3v.training.adapters import add_adapters, fuse_products, lora_config
from phi3v.training.arguments import LoraArguments, ModelArguments
from phi3v.training.parts import cast_parts, freeze_parts, plan_parts

ARMS = ("original", "original-sdpa", "hf", "ours", "ours-selective", "ours-full")
METHODS = ("lora", "full")
_REGIMES: dict[str, Regime] = {"ours-selective": "selective", "ours-full": "full"}
Batch = dict[str, Any]


def build(
    arm: str,
    method: str,
    size: Size,
    vocabulary: int | None = None,
    *,
    dtype: Any = torch.float32,
    train_vision: bool = False,
    base: Any = None,
) -> tuple[Any, Phi3VConfig]:
    """Make a model that trains the decoder, by adapters or fully, and the image projection fully.

    Args:
        arm: One of ``ARMS``.
        method: One of ``METHODS``.
        size: Widths and depths.
        vocabulary: Instead of the size's own.
        dtype: Type of the weights that do not train.
        train_vision: Train the tower, too, fully.
        base: Takes the place of random weights.
    """
    config = model_config(size, vocabulary)
    model: Any = make_model(config, dtype) if base is None else base
    lora = LoraArguments(
        lora_enable=method == "lora",
        lora_rank=size.lora_rank,
        lora_alpha=2 * size.lora_rank,
        lora_dropout=0.0,
        lora_namespan_exclude="['lm_head', 'embed_tokens']" if method == "lora" else None,
    )
    frozen = not train_vision
    plan = plan_parts(ModelArguments(model_id="", freeze_vision_tower=frozen), lora)
    if method == "lora":
        wrap = add_adapters if arm.startswith("ours") else _wrap_plainly
        model = wrap(model, plan, lora)
        _draw_adapters(model)
    freeze_parts(model, plan)
    cast_parts(model, dtype)
    if arm in _REGIMES:
        set_regime(model, _REGIMES[arm])
    if arm.startswith("ours") and method == "lora":
        fuse_products(model, in_place=arm != "ours-selective")
    return model, config


def _wrap_plainly(model: Any, plan: Any, lora: LoraArguments) -> Any:
    return get_peft_model(model, lora_config(model, plan, lora))


@torch.no_grad()
def _draw_adapters(model: nn.Module) -> None:
    """Start B away from zero, so that gradients of all adapters are compared."""
    draws = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            drawn = torch.randn(parameter.shape, generator=draws, device="cpu") * 0.02
            parameter.copy_(drawn)


def prepare(arm: str, groups: list[list[Example]], num_crops: int) -> Batch:
    """Collate as the data loader of an arm does."""
    if arm.startswith("ours"):
        return pack_row(groups, IMAGE_TOKEN_ID)
    examples = [example for group in groups for example in group]
    batch = original_batch(examples, num_crops)
    if arm == "hf":
        ids = batch["input_ids"]
        batch["input_ids"] = ids.masked_fill(ids < 0, IMAGE_TOKEN_ID)
    return batch


def loss_of(arm: str, model: Any, batch: Batch) -> Tensor:
    """Run the forward pass of an arm."""
    if arm.startswith("original"):
        return original_loss(model, batch, eager=arm == "original")
    if arm == "hf":
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits = model(**inputs, use_cache=False).logits
        targets = nn.functional.pad(batch["labels"], (0, 1), value=-100)[..., 1:]
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return model(**batch).loss


def make_optimizer(arm: str, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over what trains; fused except in the original."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-4, fused=not arm.startswith("original"))


def step_of(
    arm: str, model: Any, optimizer: torch.optim.Optimizer
) -> Callable[[Batch], tuple[float, float]]:
    """Return the training step of an arm: batch to loss and norm of the gradients."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step(batch: Batch) -> tuple[float, float]:
        loss = loss_of(arm, model, batch)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trained, float("inf"))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item(), norm.item()

    return step
