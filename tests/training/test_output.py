import errno
import fcntl
from pathlib import Path
from typing import Any

import pytest
from tests.data.test_locking import elsewhere

from phi3v.data.locking import ProcessLock
from phi3v.model.durable import seal
from phi3v.training.output import (
    LOCK_FILE,
    RUN_FILE,
    choose_checkpoint,
    clear_earlier_run,
    kept_to_one_run,
)


def run_folder(folder: Path) -> Path:
    """A folder as a finished run leaves it, with a file of the user's."""
    for name in (RUN_FILE, "adapter_config.json", "adapter_model.safetensors", "notes.txt"):
        (folder / name).write_text("x")
    for step in (2, 10):
        (folder / f"checkpoint-{step}").mkdir()
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
        seal(folder / f"checkpoint-{step}")
    return folder


def test_new_and_empty_folders_start_anew(tmp_path: Path) -> None:
    assert choose_checkpoint(tmp_path, None, overwrite=False) is None
    assert choose_checkpoint(tmp_path / "new", None, overwrite=False) is None


def test_an_earlier_run_is_neither_resumed_nor_replaced_unasked(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="--resume_from_checkpoint true.*--overwrite"):
        choose_checkpoint(run_folder(tmp_path), None, overwrite=False)
    with pytest.raises(FileExistsError, match="earlier run"):
        choose_checkpoint(tmp_path, "false", overwrite=False)


def test_a_folder_of_others_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="holds no run of phi3v"):
        choose_checkpoint(tmp_path, None, overwrite=False)
    assert choose_checkpoint(tmp_path, None, overwrite=True) is None


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(FileExistsError, match="is a file"):
        choose_checkpoint(tmp_path / "out", None, overwrite=True)


@pytest.mark.parametrize("word", ["true", "True", "yes", "1"])
def test_true_means_the_newest_checkpoint(tmp_path: Path, word: str) -> None:
    found = choose_checkpoint(run_folder(tmp_path), word, overwrite=False)
    assert found == str(tmp_path / "checkpoint-10")


def test_resuming_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint-"):
        choose_checkpoint(tmp_path, "true", overwrite=False)
    with pytest.raises(FileNotFoundError, match="no trainer_state.json"):
        choose_checkpoint(tmp_path, str(tmp_path / "checkpoint-1"), overwrite=False)


def test_resume_and_overwrite_contradict(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--resume_from_checkpoint contradicts --overwrite"):
        choose_checkpoint(tmp_path, "true", overwrite=True)


def test_overwriting_removes_our_results_and_nothing_else(tmp_path: Path) -> None:
    removed = clear_earlier_run(run_folder(tmp_path))
    assert "checkpoint-2" in removed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", RUN_FILE]


def test_a_folder_that_is_no_run_of_ours_is_not_cleared(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("theirs")
    assert clear_earlier_run(tmp_path) == []
    assert (tmp_path / "model.safetensors").exists()


def test_second_run_in_a_folder_is_refused_until_the_first_dies(tmp_path: Path) -> None:
    with elsewhere(ProcessLock(tmp_path / LOCK_FILE).take):
        with pytest.raises(FileExistsError, match="another run is writing there"):
            with kept_to_one_run(tmp_path):
                pass
    with kept_to_one_run(tmp_path):
        # What the killed one has left makes the folder no other run's.
        assert choose_checkpoint(tmp_path, None, overwrite=False) is None
    assert not list(tmp_path.iterdir())


def test_run_that_comes_to_nothing_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bad data"), kept_to_one_run(tmp_path / "a" / "b"):
        raise ValueError("bad data")
    assert not list(tmp_path.iterdir())


def test_without_locks_a_run_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", fail)
    with kept_to_one_run(tmp_path / "out"):
        pass
    assert "a second run in it would not be noticed" in caplog.text
