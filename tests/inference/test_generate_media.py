"""The flags about media of ``phi3v generate``, for one question and for a file of them."""

import http.server
import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from phi3v.cli import main


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A lying picture that its tag turns upright, and one outside the folder."""
    folder = tmp_path / "images"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.effect_noise((300, 100), 60).convert("RGB").save(folder / "lying.jpg", exif=exif)
    Image.new("RGB", (40, 30)).save(tmp_path / "outside.png")
    return folder


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(_Quiet, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def words(tiny_folder: Path) -> list[str]:
    return [
        "generate",
        "--model-path",
        str(tiny_folder),
        "--max-new-tokens",
        "2",
        "--device",
        "cpu",
    ]


def test_addresses_are_fetched_only_if_allowed(
    words: list[str], address: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*words, "--prompt", "What?", "--image-file", f"{address}/lying.jpg"]
    assert main(asked) == 2
    assert "is a URL" in capsys.readouterr().err
    assert main([*asked, "--allow-urls"]) == 0


def test_large_pictures_are_refused_by_the_flag(
    words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*words, "--prompt", "What?", "--image-file", str(folder / "lying.jpg")]
    assert main([*asked, "--max-image-pixels", "29999"]) == 2
    assert "more than 29999 pixels" in capsys.readouterr().err
    assert main([*asked, "--max_image_pixels", "30000"]) == 0


def test_pictures_are_turned_upright_by_the_flag(
    words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*words, "--prompt", "What?", "--debug", "--image-file", str(folder / "lying.jpg")]
    tokens = []
    for flags in ([], ["--exif-orientation"]):
        assert main([*asked, *flags]) == 0
        tokens.append(capsys.readouterr().err.split("picture(s) of ")[1].split(")")[0])
    assert tokens[0] != tokens[1]


def test_a_file_of_questions_may_name_absolute_paths_if_allowed(
    words: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"prompt": "What?", "image": str(tmp_path / "outside.png")}
    (tmp_path / "in.jsonl").write_text(json.dumps(record))
    asked = [*words, "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
    asked += ["--image-folder", str(folder)]
    assert main(asked) == 2
    assert "is absolute" in capsys.readouterr().err
    assert main([*asked, "--allow-absolute-paths"]) == 0
