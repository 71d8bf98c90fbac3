import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

import phi3v
from phi3v import cli

SOURCE = Path(__file__).resolve().parent.parent / "src"


def run_module(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-Ximporttime", "-m", "phi3v", *words],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def fake_command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[list[str]], int]], None]:
    def install(main: Callable[[list[str]], int]) -> None:
        room = types.ModuleType("fake_room")
        room.main = main  # type: ignore[attr-defined]  # a module made on the spot
        monkeypatch.setitem(sys.modules, "fake_room", room)
        monkeypatch.setitem(cli.COMMANDS, "fake", cli.Command("fake_room", "stand-in"))

    monkeypatch.delenv("PHI3V_DEBUG", raising=False)
    return install


def raising(error: BaseException) -> Callable[[list[str]], int]:
    def main(argv: list[str]) -> int:
        raise error

    return main


@pytest.mark.parametrize("word", ["--help", "--version", "unknown"])
def test_help_and_version_import_nothing_heavy(word: str) -> None:
    done = run_module(word)
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "phi3v.cli" in imported
    assert imported.isdisjoint({"torch", "transformers", "numpy", "phi3v.model"})


def test_version_is_the_package_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"phi3v {phi3v.__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert f"  {name} " in printed and command.summary in printed


def test_no_command_shows_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: phi3v" in capsys.readouterr().err


def test_misspelt_command_suggests_the_close_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    assert "unknown command 'trian'; did you mean 'train'?" in capsys.readouterr().err


def test_unknown_command_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["xyzzy"]) == 2
    assert f"the commands are {', '.join(cli.COMMANDS)}" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_command_has_its_module(name: str) -> None:
    path = SOURCE.joinpath(*cli.COMMANDS[name].module.split(".")).with_suffix(".py")
    assert path.is_file()


def test_command_gets_its_words_and_gives_the_status(fake_command: Callable) -> None:
    seen: list[list[str]] = []

    def main(argv: list[str]) -> int:
        seen.append(argv)
        return 7

    fake_command(main)
    assert cli.main(["fake", "--debug", "x", "--help"]) == 7
    assert seen == [["--debug", "x", "--help"]]


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, FileExistsError])
def test_user_error_is_one_line(
    error: type[Exception], fake_command: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_command(raising(error("record 'a17': no picture")))
    assert cli.main(["fake"]) == 2
    assert capsys.readouterr().err == "phi3v fake: error: record 'a17': no picture\n"


def test_debug_word_shows_the_traceback(fake_command: Callable) -> None:
    fake_command(raising(ValueError("inside")))
    with pytest.raises(ValueError, match="inside"):
        cli.main(["--debug", "fake"])


def test_debug_variable_shows_the_traceback(
    fake_command: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_command(raising(ValueError("inside")))
    monkeypatch.setenv("PHI3V_DEBUG", "1")
    with pytest.raises(ValueError, match="inside"):
        cli.main(["fake"])


def test_our_own_fault_keeps_its_traceback(fake_command: Callable) -> None:
    fake_command(raising(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["fake"])


def test_interrupt_ends_with_130(
    fake_command: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_command(raising(KeyboardInterrupt()))
    assert cli.main(["fake"]) == 130
    assert capsys.readouterr().err == "phi3v fake: interrupted\n"


ENDING = """
import atexit, sys, types
from phi3v import cli

def fail(argv):
    raise RuntimeError("a bug")

sys.modules["fake_room"] = types.SimpleNamespace(main=fail)
cli.COMMANDS["fake"] = cli.Command("fake_room", "stand-in")
atexit.register(print, "taken apart")
cli.start()
"""


@pytest.mark.parametrize(
    ("word", "processes", "status", "is_taken_apart"),
    [
        ("--version", "2", 0, True),
        ("unknown", "1", 2, True),
        ("unknown", "2", 2, False),
        ("fake", "1", 1, True),
        ("fake", "2", 1, False),
    ],
)
def test_one_of_several_processes_that_fails_ends_at_once(
    word: str, processes: str, status: int, is_taken_apart: bool
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDING, word],
        env={**os.environ, "PYTHONPATH": str(SOURCE), "WORLD_SIZE": processes},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status
    assert ("taken apart" in done.stdout) == is_taken_apart
    if status:
        assert {"unknown": "unknown command", "fake": "a bug"}[word] in done.stderr


@pytest.mark.parametrize(
    ("command_line", "expected"),
    [
        (["python", "/home/ada/.venv/bin/phi3v", "train"], True),
        (["python", "-m", "phi3v", "train"], True),
        (["python", "-u", "-m", "phi3v.training.train"], True),
        (["python", "-m", "pytest", "phi3v"], False),
        (["python", "my_script.py", "phi3v"], False),
        (["python", "my_script.py", "-m", "phi3v"], False),
        (["python", "-c", "import phi3v"], False),
        (["python"], False),
        (["embedded"], False),
        ([], False),
    ],
)
def test_only_the_command_puts_registration_off(command_line: list[str], expected: bool) -> None:
    assert phi3v._runs_command(command_line) is expected


def test_public_names_are_listed_before_they_are_loaded() -> None:
    assert set(phi3v.__all__) <= set(dir(phi3v))


def test_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'phi3v' has no attribute 'nothing'"):
        _ = phi3v.nothing


def test_public_names_load() -> None:
    for name in phi3v.__all__:
        assert getattr(phi3v, name) is not None
