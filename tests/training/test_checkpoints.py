"""Checkpoints and results are whole or not there, wherever the process is killed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.training.killing import survives

from phi3v.model.durable import find_damage, is_sealed
from phi3v.training.checkpoints import (
    UNFINISHED,
    checkpoints_of,
    explained,
    finish_result,
    finish_unfinished,
    finish_writing,
    newest_complete,
    number_of,
    result_aside,
    start_writing,
)
from phi3v.training.output import RUN_FILE, choose_checkpoint


def write(folder: Path, step: int, *, limit: int | None = None, best: str | None = None) -> None:
    start_writing(folder, step)
    aside = folder / UNFINISHED / f"checkpoint-{step}"
    (aside / f"global_step{step}").mkdir(parents=True)
    (aside / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (aside / f"global_step{step}" / "states.pt").write_bytes(os.urandom(64))
    finish_writing(folder, step, limit=limit, best=best)


def write_result(folder: Path, text: str) -> None:
    aside = result_aside(folder)
    aside.mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (aside / name).write_text(f"{text} {name}")
    finish_result(folder)


def numbers(folder: Path) -> list[int]:
    return [number_of(path) for path in checkpoints_of(folder)]


def every_kill(
    make: Callable[[Path], None],
    work: Callable[[Path], None],
    tmp_path: Path,
    error: OSError | None = None,
) -> list[Path]:
    """Folders as the work leaves them when it is killed, or fails, at each of its steps."""
    folders: list[Path] = []
    while True:
        folder = tmp_path / f"kill{len(folders)}"
        folder.mkdir()
        make(folder)
        step = len(folders) + 1
        if survives(lambda folder=folder: work(folder), folder, step, error=error):
            assert len(folders) > 5
            return folders
        folders.append(folder)


def test_killed_while_writing_and_rotating_the_newest_whole_one_is_found(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        for step in (8, 9, 10):
            write(folder, step)

    found = set()
    for folder in every_kill(make, lambda folder: write(folder, 11, limit=2), tmp_path):
        before = [step for step in numbers(folder) if is_sealed(folder / f"checkpoint-{step}")]
        for step in before:
            assert find_damage(folder / f"checkpoint-{step}", digests=True) is None
        newest = choose_checkpoint(folder, "true", overwrite=False)
        assert newest is not None
        found.add(Path(newest).name)
        assert json.loads((Path(newest) / "trainer_state.json").read_text())["global_step"] >= 10
        assert not (folder / UNFINISHED).exists()
    assert found == {"checkpoint-10", "checkpoint-11"}


def test_on_a_disk_that_fails_at_any_step_the_newest_whole_one_is_found(tmp_path: Path) -> None:
    def work(folder: Path) -> None:
        with explained(folder, folder / UNFINISHED / "checkpoint-9"):
            write(folder, 9, limit=1)

    found = set()
    full = OSError(28, "No space left on device")
    for folder in every_kill(lambda folder: write(folder, 8), work, tmp_path, full):
        newest = choose_checkpoint(folder, "true", overwrite=False)
        assert newest is not None
        found.add(Path(newest).name)
    assert found == {"checkpoint-8", "checkpoint-9"}


def test_killed_while_a_checkpoint_is_replaced_one_of_both_is_there(tmp_path: Path) -> None:
    for folder in every_kill(
        lambda folder: write(folder, 5), lambda folder: write(folder, 5), tmp_path
    ):
        assert choose_checkpoint(folder, "true", overwrite=False) == str(folder / "checkpoint-5")


def test_killed_while_cleared_up_nothing_is_lost(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        write(folder, 3)
        write(folder, 4)
        unfinished = folder / UNFINISHED
        unfinished.mkdir()
        (folder / "checkpoint-4").rename(unfinished / "checkpoint-4")
        (unfinished / "checkpoint-5").mkdir()
        (unfinished / "checkpoint-5" / "half.bin").write_text("x")

    for folder in every_kill(make, finish_unfinished, tmp_path):
        assert choose_checkpoint(folder, "true", overwrite=False) == str(folder / "checkpoint-4")


def test_killed_while_the_result_is_put_in_place_it_is_no_model_or_a_whole_one(
    tmp_path: Path,
) -> None:
    whole = 0
    for folder in every_kill(
        lambda folder: write_result(folder, "old"),
        lambda folder: write_result(folder, "new"),
        tmp_path,
    ):
        if (folder / "config.json").is_file():
            contents = {
                (folder / name).read_text().split()[0]
                for name in ("model.safetensors", "config.json", "tokenizer.json")
            }
            assert len(contents) == 1
            whole += 1
    assert whole


@pytest.mark.parametrize("file", ["trainer_state.json", "manifest.json", "global_step7/states.pt"])
@pytest.mark.parametrize("damage", ["missing", "cut off", "altered", "empty"])
def test_damaged_checkpoint_is_passed_over(
    tmp_path: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 6)
    write(tmp_path, 7)
    path = tmp_path / "checkpoint-7" / file
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {"cut off": content[:-2], "altered": b"#" + content[1:], "empty": b""}[damage]
        )
    assert choose_checkpoint(tmp_path, "true", overwrite=False) == str(tmp_path / "checkpoint-6")
    assert "not resumed from checkpoint-7" in caplog.text
    if file == "global_step7/states.pt":
        with pytest.raises(ValueError, match="damaged"):
            choose_checkpoint(tmp_path, str(tmp_path / "checkpoint-7"), overwrite=False)


def test_rotation_goes_by_steps_when_the_clock_jumps_back(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
        os.utime(tmp_path / f"checkpoint-{step}", (2e9 - 1e6 * step, 2e9 - 1e6 * step))
    write(tmp_path, 4, limit=2)
    assert numbers(tmp_path) == [3, 4]
    assert newest_complete(tmp_path)[0] == tmp_path / "checkpoint-4"


def test_rotation_spares_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    write(tmp_path, 4, limit=1, best=str(tmp_path / "checkpoint-2"))
    assert numbers(tmp_path) == [2, 4]


def test_auto_resumes_or_starts_anew(tmp_path: Path) -> None:
    assert choose_checkpoint(tmp_path / "new", "auto", overwrite=False) is None
    (tmp_path / RUN_FILE).write_text("x")
    assert choose_checkpoint(tmp_path, "auto", overwrite=False) is None
    write(tmp_path, 3)
    assert choose_checkpoint(tmp_path, "auto", overwrite=False) == str(tmp_path / "checkpoint-3")
    shutil.rmtree(tmp_path / "checkpoint-3")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="earlier run"):
        choose_checkpoint(tmp_path, "auto", overwrite=False)


def test_failed_write_says_what_is_left_and_gives_its_room_back(tmp_path: Path) -> None:
    write(tmp_path, 3)
    aside = tmp_path / UNFINISHED / "checkpoint-4"
    aside.mkdir(parents=True)
    with pytest.raises(OSError, match="checkpoint-4 could not.*No space.*checkpoint-3 is whole"):
        with explained(tmp_path, aside):
            raise OSError(28, "No space left on device")
    assert not aside.exists()
    gone = tmp_path / "gone"
    with pytest.raises(OSError, match="not there any more"):
        with explained(gone, gone / UNFINISHED / "checkpoint-4"):
            raise RuntimeError("file write failed")
