"""Clips whose frames carry their number, robust to lossy codecs."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

BITS, BLOCK, HEIGHT = 8, 16, 64


def write_clip(
    path: Path,
    num_frames: int,
    rate: int | Fraction,
    codec: str = "ffv1",
    pixels: str = "bgr0",
) -> None:
    """Write a clip of 128 x 64 pixels; block b of frame k is white where bit b of k is set."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = BITS * BLOCK, HEIGHT, pixels
        for number in range(num_frames):
            bits = [255 * (number >> bit & 1) for bit in range(BITS)]
            row = np.repeat(np.array(bits, np.uint8), BLOCK)
            frame = np.broadcast_to(row[None, :, None], (HEIGHT, BITS * BLOCK, 3))
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def read_number(frame: Image.Image) -> int:
    """Read the number that `write_clip` drew."""
    grey = np.asarray(frame.convert("L"))
    middle = grey[HEIGHT // 2, BLOCK // 2 :: BLOCK]
    return sum(1 << bit for bit, value in enumerate(middle) if value > 127)
