"""What documents and groups of them cost decides which packs run side by side."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.training.conftest import record

from phi3v.data.packing import PackedDataset
from phi3v.model.cost import forward_cost
from phi3v.model.loading import load_config, load_processor
from phi3v.training.batching import Batch, largest_batch, measure_rows, pack_training_set
from phi3v.training.datasets import build_datasets
from phi3v.training.flags import parse_arguments
from phi3v.training.operations import needed_operations
from phi3v.training.parts import Plan

FROZEN_TOWER = Plan(language="LoRA", vision="frozen", projection="full")


@pytest.mark.parametrize(
    ("plan", "keeps_features", "tower", "projection"),
    [
        (FROZEN_TOWER, False, 1, 3),
        (FROZEN_TOWER, True, 0, 3),
        (Plan("LoRA", "frozen", "frozen"), False, 1, 1),
        (Plan("full", "LoRA", "frozen"), False, 2, 2),
        (Plan("full", "full", "full"), False, 3, 3),
    ],
)
def test_a_crop_costs_the_tower_beside_its_tokens(
    base_folder: Path, plan: Plan, keeps_features: bool, tower: int, projection: int
) -> None:
    config = load_config(str(base_folder))
    cost, tokens = forward_cost(config), config.vision.tokens_per_side**2
    text, picture = needed_operations(
        config,
        plan,
        lengths=np.array([300, 300]),
        crops=np.array([0, 5]),
        labels=np.array([9, 9]),
        keeps_features=keeps_features,
    )
    expected = 5 * (tower * cost.per_crop + projection * cost.per_image_token * tokens)
    assert picture - text == pytest.approx(expected)


@pytest.mark.parametrize("checked", ["True", "False"])
def test_packs_know_the_operations_of_their_documents(
    flags: list[str], data_folder: Path, tmp_path: Path, checked: str
) -> None:
    turn = [("<image>\nWhat?", "A bus.")]
    records = [record(n, turn, image="wide.png") for n in range(3)]
    records += [record(9, turn, image="square.png"), record(10, [("Hello, you.", "Hi.")])]
    file = tmp_path / "data.json"
    file.write_text(json.dumps(records))
    words = [*flags, "--output_dir", str(tmp_path / "out"), "--data_path", str(file)]
    words += ["--packing", "True", "--pack_tokens", "1000", "--check_data", checked]
    words += ["--lora_enable", "True", "--freeze_vision_tower", "True"]
    arguments, _ = parse_arguments(words)
    config = load_config(arguments.model.model_id)
    dataset, _ = build_datasets(arguments.data, load_processor(arguments.model.model_id))
    arguments.training.per_device_train_batch_size = 1
    packs = pack_training_set(dataset, config, arguments)
    lengths = np.array(dataset.lengths())
    singles = [dataset[position] for position in range(5)]
    sizes = {
        "crops": np.array([len(one.get("pixel_values", ())) for one in singles]),
        "labels": np.array([int((one["labels"] != -100).sum()) for one in singles]),
    }
    # Compact pixels leave the global crops out.
    sizes["crops"] += [len(one["image_sizes"]) for one in singles]
    own = needed_operations(config, FROZEN_TOWER, lengths=lengths, **sizes)
    assert packs.costs.sum() == pytest.approx(own.sum())
    assert largest_batch(dataset, packs, arguments.training) == _largest(packs)

    arguments.training.share_images = True
    shared = pack_training_set(dataset, config, arguments)
    assert shared.groups == [[0, 1, 2], [3], [4]]
    prefix = (lengths[:3].sum() - shared.tokens.sum() + lengths[3:].sum()) // 2
    # Twice the pairs: those of the prefix once, those of every rest with the prefix and itself.
    squares = prefix**2 + ((lengths[:3] - prefix) * (lengths[:3] + prefix)).sum()
    group = needed_operations(
        config,
        FROZEN_TOWER,
        lengths=lengths[:3].sum() - 2 * prefix,
        crops=sizes["crops"][0],
        labels=sizes["labels"][:3].sum(),
        squares=squares,
    )
    assert shared.costs.sum() == pytest.approx(float(group) + own[3:].sum())
    assert largest_batch(dataset, shared, arguments.training) == _largest(shared)


def _largest(packs: PackedDataset) -> Batch:
    """Count what the packs hold themselves, a shared beginning once."""
    labels, crops = [], []
    for pack in packs:
        row = [one for group in pack for one in group]
        pictured = [group[0] for group in pack if "pixel_values" in group[0]]
        labels.append(sum(int((one["labels"] != -100).sum()) for one in row))
        crops.append(sum(len(one["pixel_values"]) + len(one["image_sizes"]) for one in pictured))
    return Batch(int(packs.tokens.max()), max(labels), max(crops))


def test_rows_that_stay_empty_are_told_with_longer_ones(flags: list[str], tmp_path: Path) -> None:
    arguments, _ = parse_arguments([*flags, "--output_dir", str(tmp_path), "--packing"])
    training = arguments.training
    training.pack_tokens = 1000
    # Three of 410 fill rows of 1,250; three of 400 leave too much of any.
    rows = measure_rows(3, np.full(6, 410), training)
    assert rows == {
        "tokens": 1000,
        "count": 3,
        "full": 0.82,
        "fuller": {"tokens": 1250, "full": 2460 / 2500},
    }
    assert measure_rows(3, np.full(6, 400), training)["fuller"] is None
    assert measure_rows(2, np.full(6, 330), training)["full"] == 0.99
