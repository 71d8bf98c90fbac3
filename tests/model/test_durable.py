import json
import os
from hashlib import blake2b
from pathlib import Path

import pytest
from safetensors.numpy import save_file
from tests.training.killing import survives

from phi3v.model import durable
from phi3v.model.stored import check_weight_files


def folder_of(path: Path, text: str) -> Path:
    (path / "inner").mkdir(parents=True)
    (path / "a.txt").write_text(text)
    (path / "inner" / "b.bin").write_bytes(os.urandom(100))
    return path


def test_sealed_folder_is_whole(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "x", "one")
    assert not durable.is_sealed(folder)
    durable.seal(folder)
    assert durable.is_sealed(folder)
    assert durable.find_damage(folder, digests=True) is None


def test_added_files_do_no_harm(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "x", "one")
    durable.seal(folder)
    (folder / "notes.txt").write_text("mine")
    assert durable.find_damage(folder, digests=True) is None


def test_damage_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "x", "one")
    durable.seal(folder)
    (folder / "a.txt").write_text("two")
    assert durable.find_damage(folder) is None
    assert "a.txt has other contents" in str(durable.find_damage(folder, digests=True))
    (folder / "a.txt").write_text("three")
    assert durable.find_damage(folder) == "a.txt has 5 bytes instead of 3"
    (folder / "inner" / "b.bin").unlink()
    (folder / "a.txt").write_text("one")
    assert durable.find_damage(folder) == "inner/b.bin is missing"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"files": 3}', '{"files": {"a": 1}}', "[" * 10**5]
)
def test_torn_manifest_is_damage(tmp_path: Path, text: str) -> None:
    folder = folder_of(tmp_path / "x", "one")
    (folder / durable.MANIFEST).write_text(text)
    assert durable.find_damage(folder) is not None


def test_digest_of_many_chunks_sees_every_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "_CHUNK", 10)
    file = tmp_path / "x"
    seen = set()
    for changed in range(35):
        file.write_bytes(bytes(int(place == changed) for place in range(35)))
        seen.add(durable.file_digest(file))
    assert len(seen) == 35


def test_text_is_old_or_new_wherever_the_process_is_killed(tmp_path: Path) -> None:
    path, kill_at = tmp_path / "x.json", 1
    path.write_text("old")
    while not survives(lambda: durable.write_text(path, "new"), tmp_path, kill_at):
        assert path.read_text() in ("old", "new")
        kill_at += 1
    assert path.read_text() == "new" and kill_at > 2


def test_weights_are_checked_against_the_manifest_at_load(tmp_path: Path) -> None:
    import numpy as np

    save_file({"w": np.zeros(4, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    durable.seal(tmp_path)
    (tmp_path / "config.json").write_text('{"edited": true}')
    check_weight_files(tmp_path)
    save_file({"w": np.zeros(8, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="incomplete or damaged: model.safetensors has"):
        check_weight_files(tmp_path)


def test_manifests_with_the_digests_of_the_first_days_are_understood(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    parts = blake2b(b"abc", digest_size=32).digest()
    digest = blake2b(parts, digest_size=32).hexdigest()
    manifest = {"format": 1, "files": {"a": {"size": 3, "digest": digest}}}
    (tmp_path / durable.MANIFEST).write_text(json.dumps(manifest))
    assert durable.find_damage(tmp_path, digests=True) is None
    (tmp_path / "a").write_bytes(b"abd")
    assert "a has other contents" in str(durable.find_damage(tmp_path, digests=True))
