from pathlib import Path

import av
import numpy as np
import pytest
from tests.data.clips import read_number

from phi3v.data import media
from phi3v.data.media import sample_frames

CODECS = {
    "h264": ("libx264", {"g": "30", "bf": "3"}, "mp4"),
    "h264_open_gop": ("libx264", {"x264-params": "open-gop=1:keyint=30:bframes=3"}, "mp4"),
    "h264_no_key_frames": ("libx264", {"x264-params": "intra-refresh=1:keyint=30"}, "mp4"),
    "h264_mkv": ("libx264", {"g": "30"}, "mkv"),
    "hevc": ("libx265", {"x265-params": "keyint=30:open-gop=1:log-level=none"}, "mp4"),
    "mpeg4": ("mpeg4", {"g": "30", "bf": "2"}, "avi"),
    "vp8": ("libvpx", {"g": "30", "auto-alt-ref": "1", "lag-in-frames": "10"}, "webm"),
    "vp9": ("libvpx-vp9", {"g": "30", "deadline": "realtime", "cpu-used": "8"}, "webm"),
    "mpeg2": ("mpeg2video", {"g": "30"}, "mpg"),
}


@pytest.mark.parametrize("name", CODECS)
def test_sought_frames_are_those_of_decoding_from_the_start(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, options, ending = CODECS[name]
    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {codec}")
    path = tmp_path / f"clip.{ending}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        for number in range(250):
            bits = np.array([255 * (number >> bit & 1) for bit in range(8)], np.uint8)
            row = np.repeat(bits, 16)[None, :, None]
            pixels = np.ascontiguousarray(np.broadcast_to(row, (64, 128, 3)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    found = sample_frames(path, 6)
    assert [read_number(frame) for frame in found] == [0, 50, 100, 149, 199, 249]
    monkeypatch.setattr(media, "_MIN_FRAMES_TO_SEEK", 10**9)
    expected = sample_frames(path, 6)
    assert [frame.tobytes() for frame in found] == [frame.tobytes() for frame in expected]
