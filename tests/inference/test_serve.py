import socket
from pathlib import Path

import pytest

from phi3v.cli import main
from phi3v.inference.serve import build_parser


def serve(*words: object) -> int:
    return main(["serve", *map(str, words)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "99999"], "cannot listen at 127.0.0.1, port 99999"),
        (["--host", "256.0.0.1"], "cannot listen at 256.0.0.1"),
        (["--max-frames", "0"], "--max-frames is 0, expected at least 1"),
        (["--max_upload_mb", "0"], "--max-upload-mb is 0"),
        (["--num-crops", "17", "--port", "0"], "num_crops is 17"),
        (["--top-p", "0.5"], "has no effect at temperature 0"),
        (
            ["--compile", "--device", "cpu"],
            "--compile needs a CUDA device, but the model is loaded",
        ),
        (["--max-kept-tokens", "-1"], "--max-kept-tokens is -1, expected 0, which keeps none"),
        (["--load-4bit", "--load-8bit"], "exclude each other"),
    ],
)
def test_flags_that_cannot_be_honoured_are_refused(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert serve("--model-path", tiny_folder, *words) == 2
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed


def test_a_port_in_use_is_told(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert serve("--model-path", tiny_folder, "--port", port) == 2
    assert f"cannot listen at 127.0.0.1, port {port}" in capsys.readouterr().err


def test_a_missing_folder_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve("--model-path", tmp_path / "none", "--port", 0) == 2
    assert "no checkpoint folder" in capsys.readouterr().err


def test_it_listens_to_this_machine_alone_unless_told() -> None:
    assert build_parser().parse_args(["--model-path", "m"]).host == "127.0.0.1"
