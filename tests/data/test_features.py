"""Entries of features: exact, found by content, rebuilt when damaged, safe beside others."""

import os
import time
from pathlib import Path

import pytest
import torch

from phi3v.data.features import FeatureCache, fingerprint
from phi3v.data.options import MediaOptions
from phi3v.data.records import Media

SHAPE = (4, 6)


def cache_in(folder: Path, tower: str = "t", setting: tuple[int, ...] = (4,)) -> FeatureCache:
    return FeatureCache(folder, tower, SHAPE, torch.bfloat16, setting)


def picture(folder: Path, name: str, content: bytes) -> Media:
    (folder / name).write_bytes(content)
    return Media("image", name, folder=str(folder))


def key(cache: FeatureCache, *media: Media, size: tuple[int, int] = (9, 9)) -> str:
    return cache.key(media, [size] * len(media), MediaOptions())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_entry_comes_back_bit_by_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    cache = FeatureCache(tmp_path, "t", SHAPE, dtype, ())
    features = torch.randn(3, *SHAPE, dtype=dtype)
    features[0, 0, 0] = float("nan")
    cache.write("abc", features)
    found = cache.read("abc", 3)
    assert found is not None and found.dtype == dtype
    assert torch.equal(found.view(torch.uint8), features.view(torch.uint8))


def test_what_is_not_there_or_has_other_crops_is_missing(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    assert cache.read("abc", 3) is None
    cache.write("abc", torch.zeros(2, *SHAPE, dtype=torch.bfloat16))
    assert cache.read("abc", 3) is None


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_entry_is_missing_and_can_be_written_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cache_in(tmp_path)
    features = torch.randn(2, *SHAPE).bfloat16()
    cache.write("abc", features)
    (path,) = tmp_path.rglob("abc")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes({"flip": bytes(content), "cut": bytes(content[:-3]), "empty": b""}[damage])
    assert cache.read("abc", 2) is None
    assert "damaged" in caplog.text
    cache.write("abc", features)
    assert torch.equal(cache.read("abc", 2), features)
    assert [one.name for one in tmp_path.rglob("*") if one.is_file()] == ["abc"]


def test_readers_never_see_half_of_what_processes_write_at_once(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    features = torch.randn(40, *SHAPE).bfloat16()
    children = []
    for _ in range(2):
        if (child := os.fork()) == 0:
            for _ in range(100):
                cache.write("abc", features)
            os._exit(0)
        children.append(child)
    found = [cache.read("abc", 40) for _ in range(200)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    found = [one for one in (*found, cache.read("abc", 40)) if one is not None]
    assert all(torch.equal(one, features) for one in found) and found
    assert [one.name for one in tmp_path.rglob("*") if one.is_file()] == ["abc"]


def test_what_a_killed_process_left_is_removed_after_an_hour(tmp_path: Path) -> None:
    aside = cache_in(tmp_path).folder / ".writing"
    aside.mkdir()
    for name, age in (("old", 4000), ("new", 10)):
        (aside / name).write_bytes(b"half")
        os.utime(aside / name, (time.time() - age,) * 2)
    cache_in(tmp_path)
    assert [one.name for one in aside.iterdir()] == ["new"]


def test_an_entry_that_cannot_be_read_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cache_in(tmp_path)
    (cache.folder / "ab" / "abc").mkdir(parents=True)
    assert cache.read("abc", 1) is None and "cannot be read" in caplog.text


def test_names_follow_content_and_plan_and_not_the_name_of_the_file(tmp_path: Path) -> None:
    cache = cache_in(tmp_path / "cache")
    a, copy, b = (picture(tmp_path, *one) for one in (("a", b"1"), ("c", b"1"), ("b", b"2")))
    assert key(cache, a) == key(cache, copy)
    others = [
        key(cache, a),
        key(cache, b),
        key(cache, a, size=(9, 8)),
        key(cache, a, b),
        key(cache, b, a),
        cache.key([a], [(9, 9)], MediaOptions(exif_orientation=True)),
        key(cache_in(tmp_path / "cache", setting=(5,)), a),
    ]
    assert len(set(others)) == len(others)


def test_a_file_that_changes_gets_another_name(tmp_path: Path) -> None:
    cache = cache_in(tmp_path / "cache")
    before = key(cache, picture(tmp_path, "a", b"1"))
    assert key(cache, picture(tmp_path, "a", b"22")) != before


def test_the_fingerprint_is_that_of_weights_types_and_settings() -> None:
    weights = [torch.randn(3, 2), torch.zeros(())]
    other = [weights[0].clone(), weights[1]]
    other[0][1, 1] += 1e-3
    found = [
        fingerprint(weights),
        fingerprint(other),
        fingerprint([one.bfloat16() for one in weights]),
        fingerprint([weights[0].view(2, 3), weights[1]]),
        fingerprint(weights, "sdpa"),
    ]
    assert len(set(found)) == 5
    assert fingerprint([one.clone() for one in weights]) == found[0]
