"""Short runs of `phi3v train` on a GPU; the same bodies run on the CPU."""

from collections.abc import Callable

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from tests.training.conftest import Run, check_table

ON = {"cpu": ["--use_cpu", "True"], "cuda": ["--use_cpu", "False", "--bf16", "True"]}
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.slow),
    pytest.param("cuda", marks=pytest.mark.gpu),
]


def check_run(run: Run, device: str) -> None:
    assert len(run.losses()) == 2 and all(torch.tensor(run.losses()).isfinite())
    assert {parameter.device.type for parameter in run.model.parameters()} == {device}


@pytest.mark.parametrize("device", DEVICES)
def test_a_4_bit_base_is_loaded_and_trains_its_adapters(
    start: Callable[..., Run], device: str
) -> None:
    run = start(*ON[device], "--lora_enable", "--bits", "4", "--packing", "--pack_tokens", "4096")
    check_run(run, device)
    packed = [one for one in run.model.modules() if isinstance(one, Linear4bit)]
    assert packed and all(one.weight.dtype == torch.uint8 for one in packed)
    changed = run.changed()
    assert any("lora_B" in name for name in changed)
    assert not any("base_layer" in name and "img_projection" not in name for name in changed)


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "adamw_bnb_8bit", "paged_adamw_8bit"])
def test_full_training_on_a_gpu_changes_the_parts_of_its_table(
    start: Callable[..., Run], optimizer: str
) -> None:
    run = start(*ON["cuda"], "--optim", optimizer)
    check_run(run, "cuda")
    run.model.cpu()
    check_table(run)
