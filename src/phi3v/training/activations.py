"""From the flags to what the layers keep for the backward pass."""

import copy
import logging
from typing import Any

import torch

from phi3v.data.packing import PackedDataset
from phi3v.data.streaming import StreamedExamples
from phi3v.model.compiling import can_fuse, compile_layers, fuse_elementwise
from phi3v.model.configuration import Phi3VConfig
from phi3v.model.loss import CHUNK
from phi3v.model.memory import WIDE, Precision, activation_bytes
from phi3v.model.recompute import Regime, set_regime
from phi3v.training.adapters import fuse_products, is_wrapped
from phi3v.training.arguments import LoraArguments, Phi3VTrainingArguments
from phi3v.training.flags import RunArguments
from phi3v.training.optimizer import state_bytes
from phi3v.training.parts import EMBEDDINGS, SEPARATORS, VISION_SIDE, own_parameters

logger = logging.getLogger(__name__)

REGIMES: tuple[Regime, ...] = ("none", "selective", "full")
# The rest is for workspaces, the crops of a batch, and holes between allocations.
USABLE = 0.85


def apply_activation_memory(
    arguments: RunArguments, model: Any, config: Phi3VConfig, train_set: Any
) -> Regime:
    """Let the layers keep what ``--activation_memory`` says; ``auto`` is decided here.

    ``auto`` takes the first of none, selective and full whose estimate fits on the GPU; on a CPU
    it takes none.

    Args:
        arguments: Arguments of the run.
        model: Bare or wrapped model, frozen where it does not train.
        config: Sizes of the model.
        train_set: Examples or packs; gives the longest batch.

    Returns:
        The chosen regime.
    """
    training = arguments.training
    chosen = training.activation_memory
    by_flag = {"gradient_checkpointing", "activation_checkpointing"} & arguments.given
    if chosen == "auto" and by_flag:
        # Up to transformers 5.20 the only name; later releases let it mirror the new one.
        chosen = "full" if training.gradient_checkpointing else "none"
    regime: Regime = "none"
    if chosen != "auto":
        regime = chosen
    elif not training.use_cpu and torch.cuda.is_available():
        room = USABLE * torch.cuda.mem_get_info()[1] - static_bytes(model, training)
        tokens = longest_batch(train_set, training)
        regime = cheapest_regime(model, config, arguments, room=room, tokens=tokens)
    # Compiled code is not looked into; the compiler itself makes elementwise work again.
    set_regime(model, "none" if regime == "selective" and training.torch_compile else regime)
    if is_wrapped(model) and not (training.torch_compile or training.shards_weights):
        # What ``selective`` keeps may not be written over; the compiler fuses by itself.
        fuse_products(model, in_place=regime != "selective")
    return regime


def apply_compiler(model: Any, training: Phi3VTrainingArguments) -> None:
    """Compile layers for ``--torch_compile``, or fuse elementwise steps.

    Args:
        model: Bare or wrapped model.
        training: ``--torch_compile`` with backend and mode, and ``--fuse_elementwise``, whose
            ``auto`` fuses on a GPU where the compiler works.
    """
    if training.torch_compile:
        backend = training.torch_compile_backend or "inductor"
        compile_layers(model, backend, training.torch_compile_mode)
    elif training.fuse_elementwise == "on" or (
        training.fuse_elementwise == "auto"
        and training.device.type == "cuda"
        and can_fuse(training.device)
    ):
        fuse_elementwise(model)


def for_trainer(training: Phi3VTrainingArguments) -> Phi3VTrainingArguments:
    """Copy the arguments with the library's own switches off that this module answers for.

    Its checkpointing would run the backward pass through all that is frozen, and its compiler would
    take the whole model, again for each pack.
    """
    own = copy.copy(training)
    own.gradient_checkpointing = own.activation_checkpointing = own.torch_compile = False
    own.torch_compile_backend = own.torch_compile_mode = None
    return own


def cheapest_regime(
    model: Any, config: Phi3VConfig, arguments: RunArguments, *, room: float, tokens: int
) -> Regime:
    """Find the first regime whose activations fit.

    Args:
        model: Model whose parameters are frozen or not.
        config: Its sizes.
        arguments: Arguments of the run.
        room: Bytes left beside weights, gradients and states of the optimizer.
        tokens: Tokens of the longest batch.
    """
    precision = precision_of(model, arguments.lora, arguments.training)
    trains_tower = any(
        parameter.requires_grad and part in VISION_SIDE[:1]
        for _, parameter, part in own_parameters(model)
    )
    # A crop gives at least so many tokens; the global ones are among them.
    crops = tokens // config.vision.tokens_per_side**2 if trains_tower else 0
    logits = CHUNK * config.vocab_size * (precision.element + 2 * WIDE)
    for regime in REGIMES:
        needed = logits + activation_bytes(
            config, regime, precision, tokens=tokens, trained_crops=crops
        )
        if needed <= room:
            break
    logger.warning(
        "--activation_memory auto: %s; a batch of %d tokens needs about %.1f GB, %.1f GB are free "
        "beside weights and optimizer",
        regime,
        tokens,
        needed / 1e9,
        room / 1e9,
    )
    return regime


def precision_of(model: Any, lora: LoraArguments, training: Phi3VTrainingArguments) -> Precision:
    """Read off the flags and the model what decides the bytes of an activation."""
    half = training.bf16 or training.fp16
    stream = model.get_input_embeddings().weight.element_size()
    adapters = lora.lora_enable
    config = model.config
    return Precision(
        element=2 if half else stream,
        stream=stream,
        rank=lora.lora_rank if adapters else 0,
        dropout_mask=int(adapters and lora.lora_dropout > 0),
        has_dora=adapters and lora.use_dora,
        many_segments=config._attn_implementation == "sdpa",
    )


def static_bytes(model: Any, training: Phi3VTrainingArguments) -> int:
    """Count weights, gradients and states of the optimizer on one device."""
    stage = training.zero_stage
    ranks = max(training.world_size, 1)
    weights = trained = 0
    for parameter in model.parameters():
        count = getattr(parameter, "ds_numel", parameter.numel())
        weights += count * parameter.element_size()
        trained += count if parameter.requires_grad else 0
    weights += cast_bytes(model, training)
    states = state_bytes(model, training)
    if stage:
        # DeepSpeed keeps float32 copies of what trains, too.
        states += trained * WIDE
    return (
        weights // (ranks if stage == 3 else 1)
        + trained * WIDE // (ranks if stage >= 2 else 1)
        + states // (ranks if stage >= 1 else 1)
    )


def cast_bytes(model: Any, training: Phi3VTrainingArguments) -> int:
    """Count the 16-bit copies of trained matrices that autocast keeps for the backward pass.

    DeepSpeed and FSDP hold weights in 16 bits themselves.
    """
    if not (training.bf16 or training.fp16) or training.deepspeed or training.is_under_fsdp:
        return 0
    return sum(
        2 * parameter.numel()
        for _, parameter, part in own_parameters(model)
        if parameter.requires_grad and parameter.dim() >= 2 and part not in (EMBEDDINGS, SEPARATORS)
    )


def longest_batch(train_set: Any, training: Phi3VTrainingArguments) -> int:
    """Return the most tokens that a batch can have."""
    if isinstance(train_set, PackedDataset):
        return int(train_set.tokens.max()) * training.per_device_train_batch_size
    if isinstance(train_set, StreamedExamples):
        return train_set.max_seq_length * training.per_device_train_batch_size
    return max(train_set.lengths()) * training.per_device_train_batch_size
