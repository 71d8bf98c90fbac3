"""Opens the pictures and videos of records; the only module that imports PyAV.

Everything a user's file can do wrong becomes one `ValueError` or `FileNotFoundError` that names
the file. Sizes and frame counts are read without decoding, so that the length of a sample is known
before its pixels are made. Pictures are taken as the published processor takes them: no EXIF
rotation, plain conversion to RGB (16-bit and float greys are clipped, not scaled). Frames are taken
as stored, too.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.error
from PIL import Image

from phi3v.data.paths import resolve_path

logger = logging.getLogger(__name__)

# What FFmpeg itself assumes where a container tells no frame rate.
DEFAULT_FRAME_RATE = Fraction(25)


@contextmanager
def _opened_image(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except MemoryError:
        raise
    except Image.DecompressionBombError:
        raise ValueError(
            f"{path} has more pixels than PIL takes for safe (twice MAX_IMAGE_PIXELS); make "
            "it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
        ) from None
    except Image.UnidentifiedImageError:
        raise ValueError(
            f"{path} is not a picture that PIL can read; convert or remove it"
        ) from None
    # Damaged files raise nearly anything (OSError, SyntaxError, struct.error, EOFError, ...),
    # depending on the format; for the user all of it means the same.
    except Exception as error:
        raise ValueError(f"{path} is damaged or truncated ({error}); replace it") from error


def image_size(path: str | Path, image_folder: str | Path | None = None) -> tuple[int, int]:
    """Read width and height of a picture from its header.

    Args:
        path: Picture file, see `resolve_path`.
        image_folder: Folder of relative paths.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a readable picture or too large for PIL.
    """
    with _opened_image(resolve_path(path, image_folder)) as image:
        return image.size


def load_image(path: str | Path, image_folder: str | Path | None = None) -> Image.Image:
    """Decode a picture fully and convert it to RGB; of several frames or pages, the first.

    Args:
        path: Picture file, see `resolve_path`.
        image_folder: Folder of relative paths.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a readable picture, is truncated or too large for PIL.
    """
    with _opened_image(resolve_path(path, image_folder)) as image:
        image.load()
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            logger.warning(
                "%s is grey of more than 8 bits (mode %s); values over 255 become white, as in the "
                "published processor. Convert it to 8 bits to keep its shades",
                path,
                image.mode,
            )
        return image.convert("RGB")


def frame_indices(
    num_frames: int,
    average_rate: Fraction | float,
    max_num_frames: int,
    frames_per_second: float = 1.0,
) -> list[int]:
    """Choose the frames that stand for a clip: the one sampler of training and inference.

    Frames are taken at 0, 1, 2, ... seconds. If these are more than `max_num_frames`, so many are
    spread evenly over the whole clip, its first and last frame included.

    Args:
        num_frames: Frames in the clip, at least 1.
        average_rate: Frames per second of the clip.
        max_num_frames: Most frames to take, at least 1; of 1, the first frame is taken.
        frames_per_second: Frames to take per second.

    Returns:
        Ascending 0-based indices without repetition, at least one.

    Raises:
        ValueError: If an argument is out of range.
    """
    if num_frames < 1 or max_num_frames < 1 or average_rate <= 0 or frames_per_second <= 0:
        raise ValueError(
            f"cannot choose frames: num_frames {num_frames} and max_num_frames {max_num_frames} "
            f"must be at least 1, rates {average_rate} and {frames_per_second} above 0"
        )
    # A clip slower than the sampling rate gives every frame once, never one frame twice.
    step = max(Fraction(1), Fraction(average_rate) / Fraction(frames_per_second))
    if num_frames > step * max_num_frames:
        last = num_frames - 1
        gaps = max(1, max_num_frames - 1)
        return [(2 * k * last + gaps) // (2 * gaps) for k in range(max_num_frames)]
    count = -int(-num_frames // step)
    return [int(k * step) for k in range(count)]


@dataclass(frozen=True)
class FrameChoice:
    """What is known of a clip without decoding it.

    Attributes:
        indices: Frames to take, see `frame_indices`.
        size: Width and height in pixels.
        num_frames: Frames that the container announces or holds.
        average_rate: Frames per second.
    """

    indices: list[int]
    size: tuple[int, int]
    num_frames: int
    average_rate: Fraction


@contextmanager
def _opened_video(
    path: Path,
) -> Iterator[tuple[av.container.InputContainer, av.video.stream.VideoStream]]:
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} has no video stream; give a video file")
            stream = container.streams.video[0]
            # PyAV's types do not say it: a codec that FFmpeg does not know has no context.
            if stream.codec_context is None:
                raise ValueError(f"{path} has a codec that PyAV cannot decode; convert the video")
            yield container, stream
    except av.error.FFmpegError as error:
        reason = error.strerror or error
        raise ValueError(f"{path} is not a readable video ({reason}); replace it") from error


def choose_frames(
    path: str | Path,
    max_num_frames: int,
    frames_per_second: float = 1.0,
    image_folder: str | Path | None = None,
) -> FrameChoice:
    """Choose the frames of a video from its header; no frame is decoded.

    Where the container does not tell its number of frames, its packets are counted.

    Args:
        path: Video file, see `resolve_path`.
        max_num_frames: Most frames to take.
        frames_per_second: Frames to take per second.
        image_folder: Folder of relative paths.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a video or holds no frames.
    """
    path = resolve_path(path, image_folder)
    with _opened_video(path) as (container, stream):
        rate = stream.average_rate or stream.guessed_rate or DEFAULT_FRAME_RATE
        size = (stream.codec_context.width, stream.codec_context.height)
        num_frames = stream.frames or sum(
            1 for packet in container.demux(stream) if packet.size and not packet.is_discard
        )
    if num_frames < 1 or 0 in size:
        raise ValueError(f"{path} holds no video frames; replace it")
    indices = frame_indices(num_frames, rate, max_num_frames, frames_per_second)
    return FrameChoice(indices, size, num_frames, rate)


def sample_frames(
    path: str | Path,
    max_num_frames: int,
    frames_per_second: float = 1.0,
    image_folder: str | Path | None = None,
) -> list[Image.Image]:
    """Decode the frames that `choose_frames` names.

    Args:
        path: Video file, see `resolve_path`.
        max_num_frames: Most frames to take.
        frames_per_second: Frames to take per second.
        image_folder: Folder of relative paths.

    Returns:
        RGB pictures in the order of time.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be decoded, or ends a second or more before its announced end.
    """
    choice = choose_frames(path, max_num_frames, frames_per_second, image_folder)
    path = resolve_path(path, image_folder)
    wanted = set(choice.indices)
    frames: list[Image.Image] = []
    decoded = 0
    last: av.VideoFrame | None = None
    with _opened_video(path) as (container, stream):
        for last in container.decode(stream):
            if decoded in wanted:
                frames.append(last.to_image())
            decoded += 1
            if decoded > choice.indices[-1]:
                return frames
    # Edit lists hide frames that the header counts; within a second the last frame stands in.
    if last is None or choice.num_frames - decoded >= max(1.0, float(choice.average_rate)):
        raise ValueError(
            f"{path} announces {choice.num_frames} frames, but only {decoded} could be decoded; "
            "the file is truncated or damaged: replace it"
        )
    return frames + [last.to_image()] * (len(choice.indices) - len(frames))
