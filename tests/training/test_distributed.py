"""Two processes train what one does: DDP, ZeRO-1, 2, 3 and offload, text beside pictures."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.training.launching import (
    ROOT,
    TORCHRUN,
    compile_deepspeed_op,
    run_jobs,
    write_mixed_data,
)

from phi3v import load_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LORA = ["--lora_enable", "True"]
FROZEN_TOWER = ["--freeze_vision_tower", "True"]
MODES = {
    "full": [],
    "frozen": FROZEN_TOWER,
    "lora_tower": LORA,
    "lora_projection": LORA + FROZEN_TOWER,
    "vision_lora": [*LORA, *FROZEN_TOWER, "--vision_lora", "True", "--tune_img_projector", "False"],
    "nf4": [*LORA, *FROZEN_TOWER, "--bits", "4"],
}
RATES = {
    "full": [1e-4, 5e-4, 1e-3],
    "frozen": [5e-4, 1e-3],
    "lora_tower": [1e-4, 5e-4, 1e-3],
    "lora_projection": [5e-4, 1e-3],
    "vision_lora": [1e-4, 5e-4, 1e-3],
    "nf4": [5e-4, 1e-3],
}
CHECKPOINTING = ["--gradient_checkpointing", "True"]
PAIRS: dict[tuple[str, str], list[str]] = {
    ("ddp", "full"): CHECKPOINTING,
    ("ddp", "lora_tower"): [],
    ("ddp", "vision_lora"): [],
    ("ddp", "nf4"): [],
    ("zero1", "lora_projection"): [],
    ("zero2", "full"): [],
    ("zero2", "frozen"): CHECKPOINTING,
    ("zero2", "vision_lora"): CHECKPOINTING,
    ("zero2", "nf4"): [],
    ("zero3", "full"): CHECKPOINTING,
    ("zero3", "frozen"): [],
    ("zero3", "lora_tower"): [],
    ("zero3", "lora_projection"): CHECKPOINTING,
    ("zero3", "vision_lora"): [],
    ("offload", "full"): [],
    ("offload", "lora_projection"): [],
}
EVALUATED = [("ddp", "full"), ("zero3", "full")]
RESUMED = [("zero2", "lora_tower"), ("zero3", "full"), ("zero3", "lora_tower")]


def write_configs(folder: Path) -> dict[str, str]:
    """DeepSpeed files: ours, one of stage 1, and an offload file that tries to be the optimizer."""
    configs = {name: str(ROOT / "scripts" / f"{name}.json") for name in ("zero2", "zero3")}
    first = json.loads((ROOT / "scripts" / "zero2.json").read_text())
    first["zero_optimization"] = {"stage": 1}
    own = json.loads((ROOT / "scripts" / "zero3_offload.json").read_text())
    own["optimizer"] = {"type": "AdamW", "params": {"lr": 0.5, "weight_decay": 0.5}}
    own["scheduler"] = {"type": "WarmupLR", "params": {"warmup_max_lr": 0.5}}
    for name, config in (("zero1", first), ("offload", own)):
        file = folder / f"{name}.json"
        file.write_text(json.dumps(config))
        configs[name] = str(file)
    return configs


class Work:
    """The runs of this module: their results by name, their output folders."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder = folder
        self.results: dict[str, Any] = {}
        data = write_mixed_data(folder)
        held_out = folder / "held_out.json"
        # Five do not share evenly between two.
        held_out.write_text(json.dumps(json.loads(data.read_text())[:5]))
        self.evaluation = ["--eval_data_path", str(held_out), "--eval_steps", "2"]
        self.evaluation += ["--eval_strategy", "steps", "--per_device_eval_batch_size", "1"]
        self.flags = [
            *("--model_id", str(base), "--data_path", str(data), "--image_folder", str(folder)),
            *("--num_crops", "2", "--max_num_frames", "2", "--use_cpu", "True"),
            *("--dataloader_num_workers", "0", "--report_to", "none", "--disable_tqdm", "True"),
            *("--per_device_train_batch_size", "1", "--max_steps", "4", "--save_strategy", "no"),
            *("--lr_scheduler_type", "constant", "--learning_rate", "1e-3"),
            *("--vision_lr", "1e-4", "--projector_lr", "5e-4", "--lora_rank", "4"),
            # Adam would blow the rounding of gradients that are zero up to whole steps.
            *("--adam_epsilon", "1e-4"),
        ]

    def job(self, name: str, mode: str, processes: int, *more: str) -> dict[str, Any]:
        still = ["--lora_dropout", "0", "--train_sampling_strategy", "sequential"]
        accumulation = ["--gradient_accumulation_steps", str(4 // processes)]
        target = ["--output_dir", str(self.folder / name)]
        words = [*self.flags, *MODES[mode], *still, *accumulation, *target, *more]
        return {"name": name, "argv": words}

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        (file,) = (self.folder / name).glob("*.safetensors")
        return load_file(file)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Work:
    compile_deepspeed_op()
    work = Work(tmp_path_factory.mktemp("distributed"), base_folder)
    configs = write_configs(work.folder)

    def sharded(way: str) -> list[str]:
        return ["--deepspeed", configs[way]] if way in configs else []

    single = [
        work.job(f"one_{mode}", mode, 1, *(work.evaluation if mode == "full" else []))
        for mode in MODES
    ]
    double = []
    for (way, mode), more in PAIRS.items():
        evaluation = work.evaluation if (way, mode) in EVALUATED else []
        double.append(work.job(f"{way}_{mode}", mode, 2, *sharded(way), *more, *evaluation))
    for way, mode in RESUMED:
        shuffled = ["--train_sampling_strategy", "random", "--lora_dropout", "0.3"]
        shuffled += sharded(way)
        unbroken = f"unbroken_{way}_{mode}"
        saving = ["--save_strategy", "steps", "--save_steps", "3"]
        double.append(work.job(unbroken, mode, 2, *shuffled, *saving))
        start = ["--resume_from_checkpoint", str(work.folder / unbroken / "checkpoint-3")]
        double.append(work.job(f"resumed_{way}_{mode}", mode, 2, *shuffled, *start))
    for name in ("filling", "filled"):
        cache = ["--cache_vision", str(work.folder / "cache")]
        double.append(work.job(f"{name}_cache", "lora_projection", 2, *cache))
    work.results = run_jobs(single, work.folder, [TORCHRUN[0]], seconds=480)
    two = [*TORCHRUN, "--standalone", "--nproc-per-node", "2"]
    work.results |= run_jobs(double, work.folder, two, seconds=1200)
    return work


@pytest.mark.parametrize(("way", "mode"), PAIRS)
def test_losses_of_two_processes_are_those_of_one(work: Work, way: str, mode: str) -> None:
    two, one = work.results[f"{way}_{mode}"], work.results[f"one_{mode}"]
    assert (two["world_size"], one["world_size"]) == (2, 1)
    assert len(one["losses"]) == 4 and one["losses"][3] < one["losses"][0]
    # The order of float32 sums differs.
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)


@pytest.mark.parametrize(("way", "mode"), PAIRS)
def test_saved_weights_of_two_processes_are_those_of_one(work: Work, way: str, mode: str) -> None:
    two, one = work.weights(f"{way}_{mode}"), work.weights(f"one_{mode}")
    assert two.keys() == one.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize(("way", "mode"), PAIRS)
def test_files_of_two_processes_are_those_of_one(work: Work, way: str, mode: str) -> None:
    two, one = (
        {path.name for path in (work.folder / name).iterdir()}
        for name in (f"{way}_{mode}", f"one_{mode}")
    )
    assert two == one


@pytest.mark.parametrize("mode", ["full", "lora_tower"])
def test_what_zero3_saves_is_loadable(work: Work, mode: str) -> None:
    loaded = {name: load_model(work.folder / f"{name}_{mode}") for name in ("one", "zero3")}
    ids = torch.tensor([[1, 5, 9, 7]])
    one, three = (loaded[name](input_ids=ids).logits for name in ("one", "zero3"))
    torch.testing.assert_close(three, one, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("way", "mode"), PAIRS)
def test_learning_rates_of_the_optimizer_are_the_flags(work: Work, way: str, mode: str) -> None:
    assert work.results[f"{way}_{mode}"]["rates"] == pytest.approx(RATES[mode])


def test_blocks_of_a_deepspeed_file_give_way_to_the_flags(work: Work) -> None:
    (message,) = work.results["offload_full"]["messages"]
    assert "optimizer and scheduler block" in message


@pytest.mark.parametrize(("way", "mode"), EVALUATED)
def test_evaluation_of_two_processes_is_that_of_one(work: Work, way: str, mode: str) -> None:
    two, one = work.results[f"{way}_{mode}"], work.results[f"one_{mode}"]
    assert len(one["eval_losses"]) == 2
    assert two["eval_losses"] == pytest.approx(one["eval_losses"], abs=1e-5)


@pytest.mark.parametrize(("way", "mode"), RESUMED)
def test_resumed_run_equals_the_unbroken_one_bit_for_bit(work: Work, way: str, mode: str) -> None:
    resumed, unbroken = (f"{kind}_{way}_{mode}" for kind in ("resumed", "unbroken"))
    assert work.results[resumed]["losses"] == work.results[unbroken]["losses"]
    expected = work.weights(unbroken)
    for name, value in work.weights(resumed).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(("name", "crops"), [("filling", 16), ("filled", 0)])
def test_two_processes_share_a_cache_of_features(work: Work, name: str, crops: int) -> None:
    """Texts stand beside pictures: nor do they make the tower run."""
    cached, one = work.results[f"{name}_cache"], work.results["one_lora_projection"]
    assert cached["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert cached["crops"] == crops
    expected = work.weights("one_lora_projection")
    for key, value in work.weights(f"{name}_cache").items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-5)


def test_token_counts_are_those_of_all_processes(work: Work) -> None:
    assert work.results["zero3_full"]["tokens"] == work.results["one_full"]["tokens"]
