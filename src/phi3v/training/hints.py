"""Settings that are allowed but odd, or without effect beside the others."""

from phi3v.training.arguments import LoraArguments, ModelArguments, Phi3VTrainingArguments

RECOMMENDED_VISION_LR_RATIO = 5


def _idle_flags(
    model: ModelArguments, lora: LoraArguments, training: Phi3VTrainingArguments
) -> list[str]:
    """Name the flags that change nothing beside the others."""
    tower_frozen = model.freeze_vision_tower and not lora.vision_lora
    projector_frozen = not model.tune_img_projector and not lora.vision_lora
    idle = {
        "vision_lr": tower_frozen and training.vision_lr is not None,
        "projector_lr": projector_frozen and training.projector_lr is not None,
        "quant_type": model.bits != 4 and model.quant_type != "nf4",
    }
    reasons = {
        "vision_lr": "--freeze_vision_tower True",
        "projector_lr": "--tune_img_projector False",
        "quant_type": f"--bits {model.bits}",
    }
    if not lora.lora_enable:
        for name in ("lora_bias", "lora_init", "lora_preset", "num_lora_modules"):
            idle[name] = getattr(lora, name) != getattr(LoraArguments(), name)
            reasons[name] = "--lora_enable False"
    if not training.eval_generate:
        for name, default in (
            ("eval_generate_samples", 64),
            ("eval_generate_tokens", 64),
            ("eval_metrics", ["auto"]),
        ):
            idle[name] = getattr(training, name) != default
            reasons[name] = "--eval_generate False"
    return [
        f"--{name} has no effect with {reasons[name]}" for name, is_idle in idle.items() if is_idle
    ]


def find_hints(
    model: ModelArguments, lora: LoraArguments, training: Phi3VTrainingArguments
) -> list[str]:
    """List settings that are allowed but odd, or that change nothing."""
    hints = _idle_flags(model, lora, training)
    vision_lr = training.vision_lr
    limit = training.learning_rate / RECOMMENDED_VISION_LR_RATIO
    if vision_lr is not None and not model.freeze_vision_tower and vision_lr > limit:
        hints.append(
            f"--vision_lr {vision_lr:g} is closer than {RECOMMENDED_VISION_LR_RATIO}x to "
            f"--learning_rate {training.learning_rate:g}; 5 to 10 times smaller is the usual choice"
        )
    return hints
