"""Plans: bytes and operations that a run needs, against those of real small models."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from benchmarks.optimizers import held_bytes, step
from tests.model.counting import kept_bytes, peak_bytes
from tests.training.conftest import Run

from phi3v.model.loading import load_config, load_processor
from phi3v.training.activations import REGIMES, cast_bytes
from phi3v.training.batching import Batch
from phi3v.training.building import build_model
from phi3v.training.datasets import build_datasets
from phi3v.training.estimate import make_model, memory_of, weight_bytes
from phi3v.training.flags import parse_arguments
from phi3v.training.optimizer import STATES
from phi3v.training.plan import main, parse_gigabytes
from phi3v.training.strategies import STRATEGIES

COMBINATIONS = {
    "full": [],
    "frozen tower": ["--freeze_vision_tower", "True"],
    "only projection": ["--freeze_llm", "True", "--freeze_vision_tower", "True"],
    "LoRA": ["--lora_enable", "True", "--freeze_vision_tower", "True"],
    "LoRA, full vision": ["--lora_enable", "True"],
    "LoRA on all": [
        *("--lora_enable", "True", "--vision_lora", "True", "--freeze_vision_tower", "True"),
        *("--tune_img_projector", "False"),
    ],
}
BATCH = Batch(tokens=300, labels=40, crops=10)


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_weights_and_gradients_are_those_of_the_real_model(
    flags: list[str], tmp_path: Path, combination: str
) -> None:
    words = [*flags, "--output_dir", str(tmp_path / "out"), *COMBINATIONS[combination]]
    arguments, _ = parse_arguments(words)
    config = load_config(arguments.model.model_id)
    real, planned = build_model(arguments), make_model(arguments, config)
    held = sum(p.numel() * p.element_size() for p in real.parameters())
    assert weight_bytes(planned, arguments) == held
    memory = memory_of(planned, config, arguments, BATCH, regime="none")
    trained = [p for p in real.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    assert memory.gradients == sum(p.grad.nbytes for p in trained if p.grad is not None)
    optimizer = torch.optim.AdamW(trained)
    optimizer.step()
    states = [v for one in optimizer.state.values() for v in one.values() if v.dim()]
    assert memory.states == sum(value.nbytes for value in states)


@pytest.mark.parametrize(
    ("name", "combination"),
    [*((name, "full") for name in STATES), ("adamw_8bit", "LoRA, full vision")],
)
def test_states_are_those_of_the_real_optimizer(
    flags: list[str], tmp_path: Path, name: str, combination: str
) -> None:
    pytest.importorskip(STATES[name].package or "torch")
    words = [*flags, "--output_dir", str(tmp_path / "out"), "--optim", name]
    arguments, _ = parse_arguments([*words, *COMBINATIONS[combination]])
    config = load_config(arguments.model.model_id)
    planned = make_model(arguments, config)
    memory = memory_of(planned, config, arguments, BATCH, regime="none")
    if name.startswith("paged_ademamix"):
        # These need a GPU for pages; what they keep is the same.
        arguments.training.optim = name.removeprefix("paged_").removesuffix("_32bit")
    real = build_model(arguments)
    held = sum(held_bytes(real, step(real, arguments.training)).values())
    tables = 2048
    if STATES[name].package == "torchao":
        tables *= sum(p.requires_grad for p in real.parameters())
    # A table of the 256 values of a state's code lies beside the states.
    assert 0 <= held - memory.states <= (tables if STATES[name].bits < 32 else 0)


def test_sharding_divides_what_it_spreads(flags: list[str], tmp_path: Path) -> None:
    arguments, _ = parse_arguments([*flags, "--output_dir", str(tmp_path / "out")])
    config = load_config(arguments.model.model_id)
    model = make_model(arguments, config)
    sizes = {
        name: memory_of(
            model, config, arguments, BATCH, regime="none", strategy=strategy, num_gpus=4
        )
        for name, strategy in STRATEGIES.items()
    }
    ddp = sizes["ddp"]
    assert sizes["zero2"].gradients == ddp.gradients // 4
    assert sizes["zero1"].gradients == ddp.gradients
    assert sizes["zero3"].weights == ddp.weights // 4
    assert sizes["zero2"].weights == ddp.weights
    # DeepSpeed's float32 copies lie beside the two moments.
    assert sizes["zero1"].states == (ddp.states + ddp.gradients) // 4
    assert sizes["fsdp"].states == ddp.states // 4
    assert sizes["offload"].weights == sizes["offload"].states == 0


def test_activations_are_those_that_a_step_keeps(flags: list[str], tmp_path: Path) -> None:
    from phi3v.model.recompute import set_regime

    words = [*flags, "--output_dir", str(tmp_path / "out"), "--freeze_vision_tower", "True"]
    arguments, _ = parse_arguments([*words, "--attn_implementation", "sdpa"])
    config = load_config(arguments.model.model_id)
    model = build_model(arguments).train()
    ids = torch.randint(5, 400, (1, 600))
    labels = ids.where(torch.arange(600) >= 560, -100)
    found = {}
    for regime in REGIMES:
        set_regime(model, regime)
        model.zero_grad(set_to_none=True)
        peak = peak_bytes(
            lambda: model(input_ids=ids, labels=labels, segments=[(600, 0, 0)]).loss.backward()
        )
        planned = memory_of(model, config, arguments, Batch(600, 40, 0), regime=regime)
        found[regime] = planned.activations
        # Left out: embeddings, the last norm, and what the backward pass of a layer holds itself.
        own = planned.gradients + planned.activations + planned.logits
        assert 0.8 * peak < own < 1.1 * peak
    assert found["none"] > found["selective"] > found["full"]


def test_copies_that_autocast_keeps_are_counted(flags: list[str], tmp_path: Path) -> None:
    words = [*flags, "--output_dir", str(tmp_path / "out"), "--freeze_vision_tower", "True"]
    words += ["--bf16", "True", "--attn_implementation", "sdpa", "--tune_img_projector", "False"]
    arguments, _ = parse_arguments(words)
    model = build_model(arguments).train()
    kept = []
    for tokens in (300, 600):
        ids = torch.randint(5, 400, (1, tokens))
        batch = {
            "input_ids": ids,
            "labels": ids.where(torch.arange(tokens) >= tokens - 4, -100),
            "segments": [(tokens, 0, 0)],
        }

        def forward(batch: dict = batch) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return model(**batch).loss

        kept.append(kept_bytes(forward))
    # The head's copy goes with the loss, which leaves its float32 gradient; what the last layer
    # keeps for the four labels is the rest.
    fixed = 2 * kept[0] - kept[1]
    expected = cast_bytes(model, arguments.training) + 2 * model.lm_head.weight.numel()
    assert 0 <= fixed - expected < 4 * 2000


def test_the_command_plans_without_weights(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("phi3v.model.loading.Phi3VForCausalLM.from_pretrained", refuse)
    words = [*flags, "--output_dir", str(tmp_path / "out"), "--num_gpus", "2"]
    assert main([*words, "--gpu_memory", "24GB", "--json", str(tmp_path / "plan.json")]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["proposal"] == plan["proposal"] | {"strategy": "ddp", "regime": "none"}
    assert plan["epoch"]["samples"] == 8 and plan["epoch"]["operations"] > 0
    assert plan["cache_vision"] is None
    printed = capsys.readouterr().out
    assert "ZeRO-2" in printed and max(map(len, printed.splitlines())) <= 80
    assert not (tmp_path / "out").exists()
    assert main([*words, "--gpu_memory", "0.001GB"]) == 1
    assert "none fits" in capsys.readouterr().out


def test_the_cost_of_a_cache_of_features_counts_equal_pictures_once(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*flags, "--freeze_vision_tower", "--num_gpus", "2"]
    assert main([*words, "--json", str(tmp_path / "plan.json")]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    config = load_config(words[words.index("--model_id") + 1])
    arguments, _ = parse_arguments([*words[:-2], "--output_dir", str(tmp_path / "out")])
    processor = load_processor(arguments.model.model_id, num_crops=2)
    examples, _ = build_datasets(arguments.data, processor)
    # The second half of the records repeats the pictures of the first.
    pictured = [examples[number] for number in (1, 2, 3)]
    crops = sum(len(one["pixel_values"]) + len(one["image_sizes"]) for one in pictured)
    size = crops * config.vision.patches_per_side**2 * config.vision.hidden_size * 4
    assert plan["epoch"]["distinct_crops"] == crops > 0
    assert plan["cache_vision"]["num_bytes"] == size
    printed = capsys.readouterr().out
    assert "--cache_vision   0.00 GB, read in" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_an_epoch_computes_shared_pictures_once(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.json"
    epochs = []
    for words in ([], ["--packing"], ["--packing", "--share_images", "--num_gpus", "3"]):
        assert main([*flags, *words, "--json", str(file)]) == 0
        epochs.append(json.loads(file.read_text())["epoch"])
    alone, packed, shared = epochs
    assert alone["rows"] is None and packed["rows"]["count"] == 1 == packed["batches"]
    # One for each GPU.
    assert shared["rows"]["count"] == 3
    assert "rows             3 of 8,192 tokens, " in capsys.readouterr().out
    assert alone["operations"] == pytest.approx(packed["operations"])
    assert alone["tokens"] == shared["tokens"]
    assert alone["shared_tokens"] == packed["shared_tokens"] == 0 < shared["shared_tokens"]
    # Image tokens are most of each record, and each picture is there twice.
    assert shared["operations"] < 0.9 * alone["operations"]


def test_mistakes_of_the_command_are_named(flags: list[str]) -> None:
    assert parse_gigabytes("1.5GiB") == 1.5 * (1 << 30)
    with pytest.raises(ValueError, match="--gpu_memory is 'much', expected an amount such as 24GB"):
        parse_gigabytes("much")
    with pytest.raises(ValueError, match="--num_gpus is 0"):
        main([*flags, "--num_gpus", "0"])
    for share in ("1.5", "nan", "0"):
        with pytest.raises(ValueError, match="--mfu is"):
            main([*flags, "--mfu", share])
    with pytest.raises(ValueError, match="unknown word '--gpu_memmory'"):
        main([*flags, "--gpu_memmory", "24GB"])


@pytest.mark.slow
def test_a_run_sets_its_prediction_beside_what_it_measured(
    start: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    run = start("--max_steps", "1")
    plan = json.loads((run.folder / "plan.json").read_text())
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["predicted_memory_gb"] == plan["peak_memory_gb"] > 0
    assert plan["strategy"] == "DDP" and plan["regime"] == "none"
    size = run.trainer.args.per_device_train_batch_size
    assert plan["batch"]["tokens"] == size * max(run.trainer.train_dataset.lengths())
    assert f"predicted {plan['peak_memory_gb']:.2f} GB" in capsys.readouterr().out


def test_a_missing_flag_is_missed_by_the_command_that_was_called(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["--model_id", "somewhere", "--output_dir", "out"])
    assert "phi3v plan: error: the following arguments are required: --data_path" in (
        capsys.readouterr().err
    )
