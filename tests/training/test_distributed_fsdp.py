"""FSDP2 over our model; the library's Trainer would silently train by DDP on a CPU."""

from pathlib import Path

import pytest
import torch
from tests.training.launching import ROOT, TORCHRUN, launch, write_mixed_data

from phi3v.model.modeling import Phi3VForCausalLM

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("method", ["full", "LoRA"])
def test_step_under_fsdp2_is_that_of_one_process(
    method: str, base_folder: Path, tmp_path: Path
) -> None:
    data = write_mixed_data(tmp_path)
    results = []
    two = [*TORCHRUN, "--standalone", "--nproc-per-node", "2"]
    for number, launcher in enumerate(([TORCHRUN[0]], two)):
        out = tmp_path / f"{number}.pt"
        arguments = [str(path) for path in (base_folder, data, tmp_path, method, out)]
        launch([*launcher, "-m", "tests.training.fsdp2_worker", *arguments], seconds=120)
        results.append(torch.load(out, weights_only=True))
    one, both = results
    torch.testing.assert_close(both["loss"], one["loss"], rtol=0, atol=1e-5)
    assert both["weights"].keys() == one["weights"].keys()
    for name, value in one["weights"].items():
        torch.testing.assert_close(both["weights"][name], value, rtol=0, atol=1e-5)


def test_accelerate_file_wraps_the_layers_that_the_model_names() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ROOT / "scripts" / "fsdp2.yaml"))
    fsdp = config.fsdp_config
    names = fsdp["fsdp_transformer_layer_cls_to_wrap"].split(",")
    assert set(names) == set(Phi3VForCausalLM._no_split_modules)
    assert (fsdp["fsdp_version"], fsdp["fsdp_state_dict_type"]) == (2, "FULL_STATE_DICT")
