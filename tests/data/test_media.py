import logging
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from tests.data.clips import read_number, write_clip

from phi3v.data import media
from phi3v.data.media import choose_frames, frame_indices, image_size, load_image, sample_frames
from phi3v.data.options import MediaOptions

PICTURE = Image.effect_noise((40, 30), 60).convert("RGB")


def test_picture_is_decoded_as_it_was_written(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png")
    loaded = load_image("a.png", tmp_path)
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(PICTURE))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb_as_pil_converts_it(tmp_path: Path, mode: str) -> None:
    source = Image.new("I;16", (4, 3), 77) if mode == "I;16" else PICTURE.convert(mode)
    path = tmp_path / "a.tif"
    source.save(path)
    with Image.open(path) as reference:
        np.testing.assert_array_equal(
            np.asarray(load_image(path)), np.asarray(reference.convert("RGB"))
        )


def test_sixteen_bit_grey_is_taken_as_published_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.fromarray(np.full((2, 2), 4000, np.uint16)).save(tmp_path / "a.png")
    with caplog.at_level(logging.WARNING):
        assert load_image("a.png", tmp_path).getpixel((0, 0)) == (255, 255, 255)
    assert "a.png is grey of more than 8 bits" in caplog.text


def test_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    PICTURE.save(tmp_path / "a.jpg", exif=exif)
    assert load_image("a.jpg", tmp_path).size == image_size("a.jpg", tmp_path) == (40, 30)


def test_animated_picture_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image("a.gif", tmp_path).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp", "tif"])
def test_truncated_picture_is_refused_but_its_size_is_known(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    PICTURE.resize((400, 300)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"a.{ending} is (damaged or truncated|not a picture)"):
        load_image(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a.jpg is empty \(0 bytes\)"),
        (b"no picture", "a.jpg is not a picture that PIL can read"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "a.jpg is (not a picture|damaged)"),
    ],
)
def test_file_that_is_no_picture_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    for read in (load_image, image_size):
        with pytest.raises(ValueError, match=message):
            read("a.jpg", tmp_path)


def test_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png")
    small = MediaOptions(max_image_pixels=1199)
    for opening in (load_image, image_size):
        with pytest.raises(ValueError, match="a.png has more than 1199 pixels.*--max_image_pixels"):
            opening("a.png", tmp_path, small)
    assert load_image("a.png", tmp_path, MediaOptions(max_image_pixels=1200)).size == (40, 30)


def test_the_limit_of_pixels_can_be_raised_above_that_of_pil(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PICTURE.save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(ValueError, match="a.png has more than"):
        image_size("a.png", tmp_path, MediaOptions(max_image_pixels=1000))
    assert image_size("a.png", tmp_path, MediaOptions(max_image_pixels=1200)) == (40, 30)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((30, 10, 10), [0, 10, 20]),  # one frame a second
        ((35, 10, 10), [0, 10, 20, 30]),
        ((35, 10, 4), [0, 10, 20, 30]),
        ((35, 10, 3), [0, 17, 34]),  # the cap: evenly from first to last
        ((100, 10, 4), [0, 33, 66, 99]),
        ((100, 10, 2), [0, 99]),
        ((100, 10, 1), [0]),
        ((1, 25, 10), [0]),
        ((1, 25, 1), [0]),
        ((3, Fraction(1, 4), 10), [0, 1, 2]),  # four seconds a frame
        ((3, 0.25, 2), [0, 2]),
        ((90, Fraction(30000, 1001), 10), [0, 29, 59, 89]),
        ((9, 2.5, 10), [0, 2, 5, 7]),
        ((30, 10, 10, 2.0), [0, 5, 10, 15, 20, 25]),
    ],
)
def test_frames_are_chosen_evenly(arguments: Any, expected: list[int]) -> None:
    assert frame_indices(*arguments) == expected


@pytest.mark.parametrize("rate", [0.1, 1, 2.4, Fraction(24000, 1001), 25, 60])
@pytest.mark.parametrize("max_num_frames", [1, 2, 7, 32])
def test_chosen_frames_ascend_within_the_clip_and_the_cap(rate: Any, max_num_frames: int) -> None:
    for num_frames in range(1, 300):
        chosen = frame_indices(num_frames, rate, max_num_frames)
        assert chosen[0] == 0 and chosen[-1] < num_frames
        assert 1 <= len(chosen) <= max_num_frames
        assert all(a < b for a, b in zip(chosen, chosen[1:], strict=False))
        assert len(chosen) <= np.ceil(num_frames / float(rate) + 1e-9)


@pytest.mark.parametrize("arguments", [(0, 25, 1), (5, 25, 0), (5, 0, 1), (5, 25, 1, 0.0)])
def test_impossible_choice_is_refused(arguments: Any) -> None:
    with pytest.raises(ValueError, match="cannot choose frames"):
        frame_indices(*arguments)


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("a.mkv", "ffv1", "bgr0"),  # lossless, no frame count in the header
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mp4", "mpeg4", "yuv420p"),
        ("a.avi", "mjpeg", "yuvj420p"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.ts", "libx264", "yuv420p"),  # no frame count, late first time stamp
        ("a.gif", "gif", "rgb8"),
    ],
)
def test_exactly_the_chosen_frames_are_decoded(
    tmp_path: Path, name: str, codec: str, pixels: str
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV is built without {codec}")
    write_clip(tmp_path / name, num_frames=57, rate=10, codec=codec, pixels=pixels)
    frames = sample_frames(name, 10, image_folder=tmp_path)
    assert [read_number(frame) for frame in frames] == [0, 10, 20, 30, 40, 50]
    frames = sample_frames(name, 3, image_folder=tmp_path)
    assert [read_number(frame) for frame in frames] == [0, 28, 56]
    assert {(frame.size, frame.mode) for frame in frames} == {((128, 64), "RGB")}


def test_choice_is_known_without_decoding(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mkv", num_frames=23, rate=10)
    choice = choose_frames("a.mkv", 10, image_folder=tmp_path)
    assert (choice.indices, choice.size, choice.num_frames) == ([0, 10, 20], (128, 64), 23)


@pytest.mark.parametrize(("num_frames", "rate"), [(1, 25), (2, 25), (3, Fraction(1, 4))])
def test_fault_26_short_and_slow_clips_give_their_frames(
    tmp_path: Path, num_frames: int, rate: Any
) -> None:
    write_clip(tmp_path / "a.mkv", num_frames=num_frames, rate=rate)
    numbers = [read_number(frame) for frame in sample_frames(tmp_path / "a.mkv", 10)]
    assert numbers == ([0] if rate == 25 else [0, 1, 2])


def test_fault_26_no_file_stays_open_after_a_video(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mkv", num_frames=30, rate=10)
    (tmp_path / "b.mkv").write_bytes((tmp_path / "a.mkv").read_bytes()[:500])
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for _ in range(5):
        sample_frames(tmp_path / "a.mkv", 2)
        with pytest.raises(ValueError):
            sample_frames(tmp_path / "b.mkv", 2)
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before


def test_clip_that_ends_long_before_its_header_says_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mkv"
    write_clip(path, num_frames=20, rate=10)
    announced = media.FrameChoice([0, 20, 39], (128, 64), 40, Fraction(10))
    monkeypatch.setattr(media, "choose_frames", lambda *_: announced)
    with pytest.raises(ValueError, match="a.mkv announces 40 frames, but only 20 could be decoded"):
        sample_frames(path, 3)


def test_last_frame_stands_in_where_less_than_a_second_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mkv"
    write_clip(path, num_frames=20, rate=10)
    announced = media.FrameChoice([0, 11, 22], (128, 64), 23, Fraction(10))
    monkeypatch.setattr(media, "choose_frames", lambda *_: announced)
    assert [read_number(frame) for frame in sample_frames(path, 3)] == [0, 11, 19]


def test_sound_without_pictures_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux([*stream.encode(sound), *stream.encode()])
    with pytest.raises(ValueError, match="a.wav has no video stream"):
        sample_frames(path, 3)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5])
def test_broken_video_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.mp4"
    write_clip(path, num_frames=30, rate=10, codec="mpeg4", pixels="yuv420p")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="a.mp4 is (empty|not a readable video)"):
        sample_frames(path, 3)


def test_unknown_codec_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    write_clip(path, num_frames=5, rate=10)
    path.write_bytes(path.read_bytes().replace(b"V_FFV1", b"V_XXXX").replace(b"FFV1", b"XXXX"))
    with pytest.raises(ValueError, match="a.mkv has a codec that PyAV cannot decode"):
        sample_frames(path, 3)


def test_text_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("not a video at all " * 50)
    with pytest.raises(ValueError, match="a.mp4 is not a readable video"):
        choose_frames(tmp_path / "a.mp4", 3)
