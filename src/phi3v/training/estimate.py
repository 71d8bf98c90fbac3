"""What a run will need, from sizes and lengths alone: bytes by kind, and operations.

No weights are loaded: the model is made on the meta device, wrapped and frozen as for training.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from phi3v.model.configuration import Phi3VConfig
from phi3v.model.loading import UNQUANTIZED_MODULES
from phi3v.model.loss import CHUNK
from phi3v.model.memory import WIDE, activation_bytes
from phi3v.model.modeling import Phi3VForCausalLM
from phi3v.model.recompute import Regime
from phi3v.model.vision import CROP_BUDGET
from phi3v.training.activations import cast_bytes, precision_of
from phi3v.training.adapters import add_adapters
from phi3v.training.batching import Batch
from phi3v.training.building import choose_kernel, compute_dtype
from phi3v.training.flags import RunArguments
from phi3v.training.optimizer import state_bytes
from phi3v.training.parts import (
    TOWER,
    cast_parts,
    freeze_parts,
    own_parameters,
    plan_parts,
)
from phi3v.training.strategies import STRATEGIES, Strategy, strategy_of


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU.

    Attributes:
        weights: Of all parameters, adapters and copies for training too, those of autocast as well.
        gradients: Float32, of what trains.
        states: Of the optimizer, with the copies of DeepSpeed.
        gathered: Of two layers whose spread weights are put together.
        activations: What layers keep for the backward pass, and one layer made again.
        logits: Of one chunk of labels, with their gradient.
        vision: Of a frozen tower while it runs; gone before the decoder runs.
    """

    weights: int
    gradients: int
    states: int
    gathered: int
    activations: int
    logits: int
    vision: int

    @property
    def total(self) -> int:
        """Bytes at the worst moment."""
        static = self.weights + self.gradients + self.states + self.gathered
        return static + max(self.activations + self.logits, self.vision)


def make_model(arguments: RunArguments, config: Phi3VConfig) -> Any:
    """Make the model of a run without memory: wrapped and frozen as the flags say."""
    model_args, lora, _, training, _ = arguments
    dtype = compute_dtype(training)
    plan = plan_parts(model_args, lora)
    with torch.device("meta"):
        model: Any = Phi3VForCausalLM._from_config(
            config, dtype=dtype, attn_implementation=choose_kernel(model_args, dtype)
        )
        if lora.lora_enable:
            # How adapters start changes no size, and some starts need numbers.
            plain = replace(lora, lora_init="default", lora_weight_path=None)
            model = add_adapters(model, plan, plain)
    freeze_parts(model, plan, bias=lora.lora_bias)
    cast_parts(model, dtype)
    return model


def weight_bytes(model: Any, arguments: RunArguments) -> int:
    """Count the bytes of all parameters, of 4-bit and 8-bit ones as bitsandbytes stores them."""
    bits, double = arguments.model.bits, arguments.model.double_quant
    total = 0.0
    for name, parameter in model.named_parameters():
        count = parameter.numel()
        if bits == 16 or not _is_quantized(name, parameter):
            total += count * parameter.element_size()
        elif bits == 8:
            total += count + WIDE * parameter.shape[0]
        else:
            # A float32 scale for 64 numbers; quantised too, a byte and, for 256 of them, a float32.
            total += count / 2 + count / 64 * ((1 + WIDE / 256) if double else WIDE)
    return int(total)


def _is_quantized(name: str, parameter: Any) -> bool:
    kept = (*UNQUANTIZED_MODULES, "vision_embed_tokens", "embed_tokens", "lora_")
    return parameter.dim() == 2 and not any(part in name for part in kept)


def memory_of(
    model: Any,
    config: Phi3VConfig,
    arguments: RunArguments,
    batch: Batch,
    *,
    regime: Regime,
    strategy: Strategy = STRATEGIES["ddp"],
    num_gpus: int = 1,
) -> Memory:
    """Count the bytes on one GPU.

    Args:
        model: From ``make_model``, or the real one.
        config: Its sizes.
        arguments: Arguments of the run.
        batch: The largest one.
        regime: What layers keep.
        strategy: How weights, gradients and states are spread.
        num_gpus: Over how many GPUs.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = weight_bytes(model, arguments)
    if not (strategy.spread or strategy.keeps_copies):
        weights += cast_bytes(model, arguments.training)
    states = state_bytes(model, arguments.training) + trained * WIDE * strategy.keeps_copies
    shares = [num_gpus if strategy.spread > place else 1 for place in range(3)]
    on_gpu = 0 if strategy.offloads else 1
    precision = precision_of(model, arguments.lora, arguments.training)
    trains_tower = trains(model, TOWER)
    places = config.vision.patches_per_side**2 + 1 if config.has_vision else 0
    width = 2 * config.vision.hidden_size + 3 * config.vision.intermediate_size
    at_once = min(batch.crops, CROP_BUDGET)
    # Pixels become float32, once for the crops and once with the global ones.
    pixels = 2 * batch.crops * 3 * config.crop_size**2 * WIDE
    chunk = min(batch.labels, CHUNK)
    return Memory(
        weights=weights * on_gpu // shares[2],
        gradients=trained * WIDE * on_gpu // shares[1],
        states=states * on_gpu // shares[0],
        gathered=2 * _largest_layer(model) if strategy.spread == 3 and num_gpus > 1 else 0,
        activations=activation_bytes(
            config,
            regime,
            precision,
            tokens=batch.tokens,
            labels=batch.labels,
            trained_crops=batch.crops if trains_tower else 0,
        ),
        logits=chunk * config.vocab_size * (precision.element + 2 * WIDE),
        vision=pixels + at_once * places * width * precision.element,
    )


def predict(model: Any, arguments: RunArguments, batch: Batch, regime: Regime) -> dict[str, Any]:
    """Predict the memory of a run that is about to start, as its report reads it.

    Args:
        model: Loaded, wrapped and frozen.
        arguments: Of the run.
        batch: The largest one.
        regime: What layers keep.

    Returns:
        ``peak_memory_gb``, ``memory_gb`` by kind (1e9 bytes), ``regime``, ``strategy``, ``batch``.
    """
    strategy = STRATEGIES[strategy_of(arguments.training.deepspeed)]
    memory = memory_of(
        model,
        model.config,
        arguments,
        batch,
        regime=regime,
        strategy=strategy,
        num_gpus=arguments.training.world_size,
    )
    return {
        "peak_memory_gb": round(memory.total / 1e9, 3),
        "memory_gb": {name: round(count / 1e9, 3) for name, count in asdict(memory).items()},
        "regime": regime,
        "strategy": strategy.name,
        "batch": asdict(batch),
    }


def trains(model: Any, part: str) -> bool:
    """Tell whether anything of a part trains."""
    return any(p.requires_grad and its == part for _, p, its in own_parameters(model))


def _largest_layer(model: Any) -> int:
    sizes: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        layer = name.partition(".layers.")[2].partition(".")[0] if ".layers." in name else name
        sizes[layer] = sizes.get(layer, 0) + parameter.numel() * parameter.element_size()
    return max(sizes.values())
