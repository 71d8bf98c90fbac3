import pytest
from torch import nn

from phi3v.training.building import build_model
from phi3v.training.flags import RunArguments, parse_arguments
from phi3v.training.optimizer import parameter_groups
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
