"""Runs with ``--cache_vision``."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import ROOT
from tests.training.conftest import Run
from torch.testing import assert_close

from phi3v.data import encoding
from phi3v.model.clip import CLIPVisionTower
from phi3v.training.checks import check_arguments
from phi3v.training.feature_cost import CacheCost
from phi3v.training.flags import parse_arguments

FROZEN = ("--freeze_vision_tower", "True", "--lora_enable", "True", "--lora_dropout", "0")
TWO_EPOCHS = ("--max_steps", "4", "--seed", "3")  # eight records in batches of four


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Count decoded files and crops of the tower."""
    counts = {"decoded": 0, "crops": 0}

    def counting(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts["decoded"] += 1
            return function(*args, **kwargs)

        return call

    for name in ("load_image", "sample_frames"):
        monkeypatch.setattr(encoding, name, counting(getattr(encoding, name)))
    forward = CLIPVisionTower.forward

    def encode(self: Any, crops: torch.Tensor) -> torch.Tensor:
        counts["crops"] += len(crops)
        return forward(self, crops)

    monkeypatch.setattr(CLIPVisionTower, "forward", encode)
    return counts


@pytest.mark.parametrize(
    "words",
    [
        (),
        pytest.param(("--bf16", "True"), marks=pytest.mark.slow),
        pytest.param(("--padding_free", "False"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_cached_runs_equal_plain_ones_and_decode_nothing_twice(
    start: Callable[..., Run],
    data_folder: Path,
    tmp_path: Path,
    counts: dict[str, int],
    words: tuple[str, ...],
) -> None:
    # The validation set, of the same records, is looked at behind each epoch.
    evaluated = ("--eval_data_path", str(data_folder / "data.json"), "--eval_strategy", "epoch")
    words = (*FROZEN, *TWO_EPOCHS, *evaluated, *words)
    plain = start(*words, folder="plain")
    in_two_epochs, in_crops = counts["decoded"], counts["crops"]
    counts.update(decoded=0, crops=0)
    cached = start(*words, "--cache_vision", str(tmp_path / "cache"), folder="cached")
    # Ten pictures and videos, and twenty crops, of two epochs and two validations.
    assert counts == {"decoded": in_two_epochs // 4, "crops": in_crops // 4}
    counts.update(decoded=0, crops=0)
    again = start(*words, "--cache_vision", str(tmp_path / "cache"), folder="again")
    assert counts == {"decoded": 0, "crops": 0} and in_two_epochs > 0
    tolerance = 2e-2 if "--bf16" in words else 1e-5
    assert cached.losses() == pytest.approx(plain.losses(), rel=tolerance)
    assert again.losses() == pytest.approx(cached.losses(), rel=tolerance)
    if "--bf16" not in words:
        for one, other in zip(cached.model.parameters(), plain.model.parameters(), strict=True):
            assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_damaged_entry_is_encoded_again(
    start: Callable[..., Run],
    tmp_path: Path,
    counts: dict[str, int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = (*FROZEN, *TWO_EPOCHS, "--cache_vision", str(tmp_path / "cache"))
    before = start(*words, folder="before")
    entry = next(one for one in sorted((tmp_path / "cache").rglob("*")) if one.is_file())
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    counts.update(decoded=0, crops=0)
    after = start(*words, folder="after")
    assert counts["decoded"] > 0 and "is damaged and is made again" in caplog.text
    assert after.losses() == pytest.approx(before.losses(), rel=1e-5)
    assert entry.stat().st_size == len(whole)


@pytest.mark.slow
def test_packs_that_share_pictures_and_loader_processes_use_the_cache(
    start: Callable[..., Run], tmp_path: Path
) -> None:
    words = (
        *FROZEN,
        *("--packing", "True", "--share_images", "True", "--pack_tokens", "300"),
        *("--max_steps", "4", "--dataloader_num_workers", "2"),
    )
    plain = start(*words, folder="plain")
    cached = start(*words, "--cache_vision", str(tmp_path / "cache"), folder="cached")
    assert any(one.is_file() for one in (tmp_path / "cache").rglob("*"))
    assert cached.losses() == pytest.approx(plain.losses(), rel=1e-5)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((), "--freeze_vision_tower False"),
        (("--freeze_vision_tower", "--lora_enable", "--vision_lora"), "--vision_lora"),
        (("--freeze_vision_tower", "--fsdp", "full_shard"), "FSDP"),
    ],
)
def test_a_tower_that_trains_or_is_sharded_is_refused(
    flags: list[str], tmp_path: Path, words: tuple[str, ...], named: str
) -> None:
    arguments, _ = parse_arguments(
        [*flags, "--output_dir", str(tmp_path), "--cache_vision", "c", *words]
    )
    with pytest.raises(ValueError, match=f"--cache_vision contradicts {named}"):
        check_arguments(*arguments[:4])


def test_a_tower_that_zero_3_shards_is_refused(flags: list[str], tmp_path: Path) -> None:
    words = ["--cache_vision", "c", "--freeze_vision_tower", "--output_dir", str(tmp_path)]
    arguments, _ = parse_arguments([*flags, *words])
    # Given as a flag, it would open a process group here, to which later tests would belong.
    arguments.training.deepspeed = str(ROOT / "scripts" / "zero3.json")
    with pytest.raises(ValueError, match="--cache_vision contradicts --deepspeed with ZeRO-3"):
        check_arguments(*arguments[:4])


def test_a_tower_that_the_launcher_shards_is_refused(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--cache_vision", "c", "--freeze_vision_tower", "--output_dir", str(tmp_path)]
    arguments, _ = parse_arguments([*flags, *words])
    check_arguments(*arguments[:4])
    # As `accelerate launch --config_file scripts/fsdp2.yaml` sets it.
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="--cache_vision contradicts FSDP"):
        check_arguments(*arguments[:4])


def test_a_folder_that_cannot_be_made_is_refused(start: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file: the folder cannot be made .*; name another one"):
        start(*FROZEN, "--cache_vision", str(tmp_path / "file"))


def test_a_full_disk_ends_the_storing_and_not_the_run(
    start: Callable[..., Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = start(*FROZEN, *TWO_EPOCHS, folder="plain")
    cache = tmp_path / "cache"
    replace = Path.replace

    def fill_up(self: Path, target: Path) -> Path:
        if str(self).startswith(str(cache)) and len(list(cache.glob("*/??/*"))) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fill_up)
    cached = start(*FROZEN, *TWO_EPOCHS, "--cache_vision", str(cache), folder="stored")
    assert caplog.text.count("cannot be written to (No space left on device)") == 1
    assert cached.losses() == pytest.approx(plain.losses(), rel=1e-5)
    # What was stored before is used, and nothing lies beside it.
    assert len([one for one in cache.rglob("*") if one.is_file()]) == 2


@pytest.mark.parametrize(
    ("seconds", "epochs", "verdict"),
    [(1000, 3, "instead of 1000 s of the tower: worth it"), (1, 3, "hardly"), (1000, 1, "later")],
)
def test_the_advice_weighs_the_tower_against_the_disk(
    seconds: float, epochs: float, verdict: str
) -> None:
    text = CacheCost(15_000_000_000, seconds, epochs).advice("/")
    assert "15.00 GB" in text and "about 10 s" in text and verdict in text


def test_a_cache_that_does_not_fit_on_the_disk_is_told_before(tmp_path: Path) -> None:
    assert "GB are free there: what does not fit" in CacheCost(10**18, 1, 2).advice(tmp_path)
    assert "are free" not in CacheCost(1, 1, 2).advice(tmp_path)
