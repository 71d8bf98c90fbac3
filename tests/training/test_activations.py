"""What ``--activation_memory`` and the library's switch make the layers keep."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.training.conftest import Run
from transformers.modeling_layers import GradientCheckpointingLayer

from phi3v.model.loading import load_config
from phi3v.training import activations
from phi3v.training.activations import (
    apply_activation_memory,
    apply_compiler,
    cheapest_regime,
    for_trainer,
    static_bytes,
)
from phi3v.training.building import build_model
from phi3v.training.checks import check_arguments
from phi3v.training.flags import RunArguments, parse_arguments
from phi3v.training.optimizer import state_bytes


def read(flags: list[str], tmp_path: Path, *words: str) -> RunArguments:
    return parse_arguments([*flags, "--output_dir", str(tmp_path), *words])[0]


def regime_of(model: Any) -> str:
    layers = [one for one in model.modules() if isinstance(one, GradientCheckpointingLayer)]
    if not all(layer.gradient_checkpointing for layer in layers):
        assert not any(layer.gradient_checkpointing for layer in layers)
        return "none"
    (selective,) = {"context_fn" in layer._gradient_checkpointing_func.keywords for layer in layers}
    return "selective" if selective else "full"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "none"),  # on a CPU
        (("--activation_memory", "selective"), "selective"),
        (("--activation_memory", "full"), "full"),
        (("--gradient_checkpointing", "True"), "full"),
        (("--gradient_checkpointing", "False"), "none"),
    ],
    ids=lambda case: " ".join(case) if isinstance(case, tuple) else case,
)
def test_flags_choose_the_regime(
    flags: list[str], tmp_path: Path, words: tuple[str, ...], expected: str
) -> None:
    arguments = read(flags, tmp_path, *words)
    model = build_model(arguments)
    config = load_config(arguments.model.model_id)
    assert apply_activation_memory(arguments, model, config, None) == expected
    assert regime_of(model) == expected
    # The library must not switch on its own kind later.
    assert not for_trainer(arguments.training).gradient_checkpointing


@pytest.mark.parametrize("regime", ["none", "selective"])
def test_two_flags_that_contradict_each_other_are_refused(
    flags: list[str], tmp_path: Path, regime: str
) -> None:
    words = ("--gradient_checkpointing", "True", "--activation_memory", regime)
    with pytest.raises(ValueError, match="contradicts --activation_memory"):
        check_arguments(*read(flags, tmp_path, *words)[:4])


@pytest.mark.parametrize("method", [(), ("--lora_enable", "--freeze_vision_tower")])
def test_the_less_room_the_more_is_made_again(
    flags: list[str], tmp_path: Path, method: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    arguments = read(flags, tmp_path, *method)
    model = build_model(arguments)
    config = load_config(arguments.model.model_id)
    chosen = [
        cheapest_regime(model, config, arguments, room=room, tokens=8192)
        for room in (1e10, *(1e6 * step for step in range(300, 0, -3)), 0)
    ]
    order = [activations.REGIMES.index(regime) for regime in chosen]
    assert order == sorted(order) and set(order) == {0, 1, 2}
    assert "8192 tokens" in caplog.text


def test_static_memory_counts_weights_gradients_and_states(
    flags: list[str], tmp_path: Path
) -> None:
    whole = read(flags, tmp_path)
    model = build_model(whole)
    used = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert static_bytes(model, whole.training) == 4 * used + 4 * trained + 8 * trained
    # The library has replaced the text of a configuration by its object then.
    whole.training.deepspeed = {"zero_optimization": {"stage": 3}}
    assert whole.training.shards_weights
    assert static_bytes(model, whole.training) == 4 * used + 4 * trained + 12 * trained
    small = read(flags, tmp_path, "--optim", "adamw_bnb_8bit")
    rest = static_bytes(model, small.training) - 4 * used - 4 * trained
    # 8-bit states of matrices with their scales, wide ones of embeddings and small parameters.
    assert rest == state_bytes(model, small.training) and 2 * trained < rest < 4 * trained


def test_the_compiler_takes_layers_or_steps_and_never_the_whole_model(
    flags: list[str], tmp_path: Path
) -> None:
    for words, has_steps, has_layers in (
        ((), False, False),  # auto on a CPU
        (("--fuse_elementwise", "on"), True, False),
        (("--torch_compile", "True", "--torch_compile_backend", "eager"), False, True),
    ):
        training = read(flags, tmp_path, *words).training
        model = build_model(read(flags, tmp_path, *words))
        apply_compiler(model, training)
        layer = model.model.layers[0]
        assert ("activate" in vars(layer.mlp)) == has_steps
        assert ("finish" in vars(layer)) == has_layers
        own = for_trainer(training)
        assert not own.torch_compile and own.torch_compile_backend is None
        assert training.torch_compile == has_layers


def test_fusing_beside_compiling_is_refused(flags: list[str], tmp_path: Path) -> None:
    words = ("--torch_compile", "True", "--fuse_elementwise", "on")
    with pytest.raises(ValueError, match="--fuse_elementwise on contradicts --torch_compile"):
        check_arguments(*read(flags, tmp_path, *words)[:4])


@pytest.mark.slow
def test_a_run_with_compiled_layers_equals_a_plain_one(
    start: Callable[..., Run],
) -> None:
    plain = start("--lora_enable", "--lora_dropout", "0", folder="plain")
    words = ("--torch_compile", "True", "--torch_compile_backend", "aot_eager")
    compiled = start("--lora_enable", "--lora_dropout", "0", *words, folder="compiled")
    assert compiled.losses() == pytest.approx(plain.losses(), rel=1e-5)
    assert "torch_compile: true" in (compiled.folder / "run.yaml").read_text()
