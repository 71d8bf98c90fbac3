"""Files of strangers: an embedded file opens nothing but itself."""

import io
import json
import tarfile
from pathlib import Path

import av
import pytest
from PIL import Image
from tests.data.clips import write_clip

from phi3v.data.media import sample_frames
from phi3v.data.options import MediaOptions
from phi3v.data.pictures import load_image
from phi3v.data.sources import open_records
from phi3v.data.tar_records import read_sample


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


def write_lying_clip(file: Path, side: int) -> None:
    """Write a clip of 16 pixels by its header, whose last frame is a picture of another size."""
    picture = io.BytesIO()
    Image.new("RGB", (side, side)).save(picture, "PNG")
    with av.open(str(file), "w") as container:
        stream = container.add_stream("png", rate=1, options={})
        stream.width, stream.height, stream.pix_fmt = 16, 16, "rgb24"
        for number in range(3):
            frame = av.VideoFrame.from_image(Image.new("RGB", (16, 16)))
            frame.pts = number
            for packet in stream.encode(frame):
                if number == 2:
                    lying = av.Packet(picture.getvalue())
                    lying.pts, lying.dts, lying.time_base = packet.pts, packet.dts, packet.time_base
                    lying.stream = stream
                    packet = lying
                container.mux(packet)


def test_frames_larger_than_their_header_says_are_not_decoded(tmp_path: Path) -> None:
    write_lying_clip(tmp_path / "lying.mov", side=600)
    options = MediaOptions(max_image_pixels=100_000)
    with pytest.raises(ValueError, match=r"lying\.mov is not a readable video"):
        sample_frames(tmp_path / "lying.mov", 3, options=options)
    assert len(sample_frames(tmp_path / "lying.mov", 3)) == 3


def tar_of(*members: tarfile.TarInfo) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        record = json.dumps({"question": "What?", "answer": "A bus."}).encode()
        good = tarfile.TarInfo("a.json")
        good.size = len(record)
        archive.addfile(good, io.BytesIO(record))
        for member in members:
            archive.addfile(member)
    return file.getvalue()


@pytest.mark.parametrize("target", ["a.png", "/etc/passwd", "../../x", "a.json"])
@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE])
def test_links_in_a_tar_file_are_not_followed(kind: bytes, target: str) -> None:
    link = tarfile.TarInfo("a.png")
    link.type, link.linkname = kind, target
    assert read_sample(tar_of(link), "x.tar") == {
        "id": "a",
        "question": "What?",
        "answer": "A bus.",
    }


def test_holes_in_a_tar_file_take_no_memory() -> None:
    hole = tarfile.TarInfo("a.png")
    hole.type = tarfile.GNUTYPE_SPARSE
    content = bytearray(tar_of(hole))
    header = content.rindex(b"a.png\0")
    size = b"%011o\0" % (1 << 32)
    # Where the old GNU form keeps the size with its holes, and then the checksum of the header.
    content[header + 483 : header + 495] = size
    content[header + 148 : header + 156] = b" " * 8
    content[header + 148 : header + 156] = b"%06o\0 " % sum(content[header : header + 512])
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        assert archive.getmember("a.png").size == 1 << 32, "the hole is as large as its header says"
    assert "image" not in read_sample(bytes(content), "x.tar")


LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 15)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- !!python/object/apply:os.system ['touch harm']", "not readable as YAML"),
        ("- " + "[" * 5000, "not readable as YAML"),
        (
            LAUGHS.replace("a0:", "- a0:", 1).replace("\na", "\n  a"),
            "expected a mapping with 'path'",
        ),
        (LAUGHS.replace("a0:", "- path: x\n  a0:", 1).replace("\na", "\n  a"), "has 'a0'"),
        ("- {path: x, name: &a [&b [x, x], *b, *b]}", "name is .* expected a text"),
        ("- {path: x, image_folder: [x]}", "image_folder is .* expected a text"),
    ],
)
def test_a_mixture_of_a_stranger_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mixture.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        open_records(tmp_path / "mixture.yaml", None)
    assert len(str(caught.value)) < 1000
    assert not (tmp_path / "harm").exists()
