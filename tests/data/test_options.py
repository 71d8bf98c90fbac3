import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phi3v.data.encoding import encode_record
from phi3v.data.fetching import fetch
from phi3v.data.frames import plan_runs
from phi3v.data.media import image_size, load_image
from phi3v.data.options import MediaOptions
from phi3v.data.records import Place, parse_record
from phi3v.model.processing import Phi3VProcessor


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/a.png")
            self.end_headers()
        else:
            super().do_GET()


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    Image.effect_noise((40, 30), 60).convert("RGB").save(tmp_path / "a.png")
    (tmp_path / "empty.png").write_bytes(b"")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_address_is_refused_unless_allowed(address: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a URL; .*--allow_urls"):
        load_image(f"{address}/a.png", tmp_path)
    fetched = load_image(f"{address}/a.png", tmp_path, MediaOptions(allow_urls=True))
    np.testing.assert_array_equal(fetched, load_image("a.png", tmp_path))


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("no.png", "answers 404"),
        ("empty.png", "sent 0 of 0 bytes"),
        ("away", "no web address"),
    ],
)
def test_an_address_that_gives_nothing_is_named(address: str, page: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"{page}.*{message}"):
        fetch(f"{address}/{page}")


def test_a_file_larger_than_allowed_is_not_fetched_whole(address: str) -> None:
    with pytest.raises(ValueError, match="more than 100 bytes"):
        fetch(f"{address}/a.png", max_bytes=100)


def test_absolute_paths_are_taken_beside_a_folder_only_if_allowed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    path = tmp_path / "a.png"
    Image.new("RGB", (40, 30)).save(path)
    with pytest.raises(ValueError, match="is absolute.*--allow_absolute_paths"):
        image_size(path, tmp_path / "folder")
    allowed = MediaOptions(allow_absolute_paths=True)
    assert image_size(path, tmp_path / "folder", allowed) == (40, 30)
    with pytest.raises(ValueError, match="leaves the image folder"):
        image_size("../a.png", tmp_path / "folder", allowed)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_to_size_and_pixels_alike(
    tmp_path: Path, ending: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 30)).save(tmp_path / f"a.{ending}", exif=exif)
    upright = MediaOptions(exif_orientation=True)
    size = image_size(f"a.{ending}", tmp_path, upright)
    assert size == ((30, 40) if orientation > 4 else (40, 30))
    assert load_image(f"a.{ending}", tmp_path, upright).size == size


@pytest.mark.parametrize("orientation", [1, 6])
def test_draft_keeps_the_layout_and_comes_close(
    tmp_path: Path, small_processor: Phi3VProcessor, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.effect_noise((40, 30), 60).convert("RGB").resize((2000, 1501))
    picture.save(tmp_path / "a.jpg", quality=95, exif=exif)
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "b"}]
    record = parse_record({"conversations": turns, "image": "a.jpg"}, Place("d", 0), tmp_path)
    exact, draft = (
        encode_record(
            record,
            small_processor,
            131072,
            max_num_frames=1,
            media_options=MediaOptions(exif_orientation=True, jpeg_draft=drafted),
        )
        for drafted in (False, True)
    )
    assert exact["input_ids"].tolist() == draft["input_ids"].tolist()
    assert exact["image_sizes"] == draft["image_sizes"]
    difference = (exact["pixel_values"].float() - draft["pixel_values"].float()).abs()
    assert 0 < difference.mean() < 6


def test_frames_far_behind_a_key_frame_are_sought() -> None:
    assert plan_runs([0, 50, 100], [0, 30, 60, 90]) == [(0, [0]), (30, [50]), (90, [100])]
    assert plan_runs([0, 5, 40], [0, 8]) == [(0, [0, 5, 40])]
    assert plan_runs([70, 71], [0, 60]) == [(60, [70, 71])]
