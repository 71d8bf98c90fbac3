"""Files of strangers: an embedded file opens nothing but itself."""

import io
from pathlib import Path

import pytest
from PIL import Image
from tests.data.clips import write_clip

from phi3v.data.media import sample_frames
from phi3v.data.options import MediaOptions
from phi3v.data.pictures import load_image


def test_an_embedded_playlist_opens_no_file_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clip(tmp_path / "secret.mkv", num_frames=3, rate=1)
    monkeypatch.chdir(tmp_path)
    playlist = b"ffconcat version 1.0\nfile 'secret.mkv'\n"
    (tmp_path / "own.ffconcat").write_bytes(playlist)
    assert sample_frames("own.ffconcat", 3), "the playlist itself is sound"
    with pytest.raises(ValueError, match="not a readable video"):
        sample_frames(playlist, 3)


def test_an_embedded_video_is_read(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mkv", num_frames=3, rate=1)
    assert len(sample_frames((tmp_path / "clip.mkv").read_bytes(), 3)) == 3


def test_a_format_that_is_not_listed_is_refused() -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "EPS")
    options = MediaOptions(image_formats=("PNG", "JPEG"))
    with pytest.raises(ValueError, match="not a picture that PIL can read"):
        load_image(file.getvalue(), options=options)
