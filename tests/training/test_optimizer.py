import gc
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from benchmarks.optimizers import step
from bitsandbytes.optim import GlobalOptimManager
from tests.training.conftest import Run
from torch import nn

from phi3v import cli
from phi3v.training.building import build_model
from phi3v.training.flags import RunArguments, parse_arguments
from phi3v.training.optimizer import check_optimizer, make_optimizer, parameter_groups
from phi3v.training.parts import own_parameters

RATES = [
    *("--learning_rate", "1e-3", "--vision_lr", "1e-4", "--projector_lr", "5e-4"),
    *("--weight_decay", "0.1"),
]
MODES = {
    "full": [],
    "LoRA and the vision side": ["--lora_enable"],
    "DoRA on everything": [
        *("--lora_enable", "--use_dora", "--vision_lora", "--freeze_vision_tower"),
        *("--tune_img_projector", "False"),
    ],
}


def read(flags: list[str], *more: str) -> RunArguments:
    return parse_arguments([*flags, *RATES, *more])[0]


@pytest.mark.parametrize("mode", MODES)
def test_every_trainable_parameter_is_in_exactly_one_group(flags: list[str], mode: str) -> None:
    arguments = read(flags, *MODES[mode])
    model = build_model(arguments)
    groups = parameter_groups(model, arguments.training)
    grouped = [parameter for group in groups for parameter in group["params"]]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(grouped) == len({id(parameter) for parameter in grouped}) == len(trainable)
    assert {id(p) for p in grouped} == {id(p) for p in trainable}


@pytest.mark.parametrize("mode", MODES)
def test_each_part_has_its_learning_rate(flags: list[str], mode: str) -> None:
    arguments = read(flags, *MODES[mode])
    model = build_model(arguments)
    rates = {
        name: group["lr"]
        for group in parameter_groups(model, arguments.training)
        for name in group["names"]
    }
    expected = {"vision tower": 1e-4, "separators": 1e-4, "image projection": 5e-4}
    for name, parameter, part in own_parameters(model):
        if parameter.requires_grad:
            assert rates[name] == expected.get(part, 1e-3), name
    assert set(rates.values()) == {1e-3, 1e-4, 5e-4}


def test_norms_biases_and_separators_do_not_decay(flags: list[str]) -> None:
    arguments = read(flags)
    model = build_model(arguments)
    decay = {
        name: group["weight_decay"]
        for group in parameter_groups(model, arguments.training)
        for name in group["names"]
    }
    for path, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{leaf}"
            if not parameter.requires_grad:
                continue
            spared = "norm" in type(module).__name__.lower() or leaf in (
                "bias",
                "glb_GN",
                "sub_GN",
                "class_embedding",
            )
            assert decay[name] == (0.0 if spared else 0.1), name
    assert isinstance(model, nn.Module)


def test_the_first_group_is_that_of_the_logged_rate(flags: list[str]) -> None:
    arguments = read(flags, "--lora_enable")
    groups = parameter_groups(build_model(arguments), arguments.training)
    assert groups[0]["lr"] == 1e-3


def test_loraplus_raises_the_rate_of_the_b_matrices_only(flags: list[str]) -> None:
    arguments = read(flags, "--lora_enable", "--loraplus_lr_ratio", "16")
    model = build_model(arguments)
    for group in parameter_groups(model, arguments.training, loraplus_lr_ratio=16):
        for name in group["names"]:
            if "lora_" in name:
                is_b = "lora_B" in name or "lora_embedding_B" in name
                assert group["lr"] == pytest.approx(1e-3 * (16 if is_b else 1)), name


def test_fused_adamw_is_the_default(flags: list[str]) -> None:
    arguments = read(flags)
    optimizer = make_optimizer(build_model(arguments), arguments.training)
    assert type(optimizer) is torch.optim.AdamW
    assert all(group["fused"] for group in optimizer.param_groups)


@pytest.mark.parametrize("name", ["adamw_bnb_8bit", "paged_adamw_8bit", "lion_8bit"])
def test_embeddings_keep_wide_states_beside_8_bit_ones(flags: list[str], name: str) -> None:
    arguments = read(flags, "--optim", name)
    model = build_model(arguments)
    optimizer = step(model, arguments.training)
    forms = {n: optimizer.state[p].get("state1") for n, p in model.named_parameters()}
    assert forms["model.embed_tokens.weight"].dtype == torch.float32
    # As large as the embedding, which shows that size is not the reason.
    assert forms["lm_head.weight"].dtype == torch.uint8
    assert forms["model.layers.0.mlp.down_proj.weight"].dtype == torch.uint8
    del model, optimizer, forms
    gc.collect()
    assert not GlobalOptimManager.get_instance().pid2config


@pytest.mark.slow
def test_a_run_with_8_bit_states_goes_on_from_its_checkpoint(start: Callable[..., Run]) -> None:
    words = ("--optim", "adamw_8bit", "--save_strategy", "steps", "--save_steps", "1")
    words += ("--per_device_train_batch_size", "2", "--max_steps", "4")
    first = start(*words, folder="first")
    point = str(first.folder / "checkpoint-2")
    again = start(*words, "--resume_from_checkpoint", point, folder="again")
    assert again.losses() == first.losses() and len(first.losses()) == 4
    expected = dict(first.model.named_parameters())
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adamw_torch_8bit", "torchao, which is not installed: pip install torchao; or take adamw"),
        ("paged_adamw_8bit", "bitsandbytes, which is not installed: pip install bitsandbytes"),
        ("stable_adamw", "torch-optimi, which is not installed: pip install torch-optimi"),
        ("schedule_free_adamw", "schedulefree, which is not installed"),
    ],
)
def test_an_optimizer_that_is_not_installed_is_refused_with_the_way_out(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    arguments = read(flags, "--optim", name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=f"--optim {name} needs {message}"):
        check_optimizer(arguments.training)


@pytest.mark.parametrize("name", ["galore_adamw", "apollo_adamw_layerwise", "adalomo"])
def test_an_optimizer_with_groups_of_its_own_is_refused(flags: list[str], name: str) -> None:
    with pytest.raises(ValueError, match=f"--optim {name} sorts parameters itself"):
        check_optimizer(read(flags, "--optim", name).training)


def test_pages_without_a_gpu_are_refused_where_they_do_not_work(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*flags, "--output_dir", str(tmp_path / "out"), "--optim", "paged_ademamix_32bit"]
    assert cli.main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert "--optim paged_ademamix_32bit needs a GPU; ademamix works without" in error
    assert "Traceback" not in error
