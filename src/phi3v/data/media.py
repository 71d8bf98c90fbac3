"""Opens the videos of records; the only module that imports PyAV.

Everything a user's file can do wrong becomes one `ValueError` or `FileNotFoundError` that names
the file. Sizes and frame counts are read without decoding, so that the length of a sample is known
before its pixels are made. Frames are taken as stored. For pictures, see `phi3v.data.pictures`.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import av.error
from av.video.frame import PictureType
from PIL import Image

from phi3v.data.faults import Fault, FaultKind
from phi3v.data.frames import FrameChoice, frame_indices, plan_runs
from phi3v.data.options import MediaOptions
from phi3v.data.paths import MediaSource, locate
from phi3v.data.pictures import image_size, load_image
from phi3v.data.truncated import begins_like_video

__all__ = [
    "FrameChoice",
    "choose_frames",
    "frame_indices",
    "image_size",
    "load_image",
    "sample_frames",
]

# What FFmpeg itself assumes where a container tells no frame rate.
DEFAULT_FRAME_RATE = Fraction(25)
# Every packet is one frame here, so a frame is found by counting packets.
_SEEKABLE_CODECS = frozenset({"av1", "h264", "hevc", "mpeg4", "vp9"})
_SEEKABLE_FORMATS = frozenset({"avi", "matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2"})
# Shorter clips are decoded from their start.
_MIN_FRAMES_TO_SEEK = 48
_PUBLISHED = MediaOptions()

_Opened = tuple[av.container.InputContainer, av.video.stream.VideoStream]


@contextmanager
def _opened_video(file: Path | bytes, name: str, max_pixels: int) -> Iterator[_Opened]:
    # A playlist can name other files and addresses. Embedded bytes may come from strangers, so from
    # them nothing else is opened.
    allowed = {"protocol_whitelist": "" if isinstance(file, bytes) else "file"}
    source = io.BytesIO(file) if isinstance(file, bytes) else str(file)
    try:
        with av.open(source, "r", options=allowed) as container:
            if not container.streams.video:
                raise Fault(
                    f"{name} has no video stream; give a video file", "not a picture or video"
                )
            stream = container.streams.video[0]
            # PyAV's types do not say it: a codec that FFmpeg does not know has no context.
            if stream.codec_context is None:
                raise Fault(
                    f"{name} has a codec that PyAV cannot decode; convert the video",
                    "not a picture or video",
                )
            # The header of a container may lie about its frames. Codecs round sizes up.
            stream.codec_context.options = {"max_pixels": str(2 * max_pixels)}
            yield container, stream
    except av.error.FFmpegError as error:
        reason = error.strerror or error
        kind: FaultKind = "damaged file" if begins_like_video(file) else "not a picture or video"
        raise Fault(f"{name} is not a readable video ({reason}); replace it", kind) from error


def choose_frames(
    source: MediaSource,
    max_num_frames: int,
    frames_per_second: float = 1.0,
    image_folder: str | Path | None = None,
    options: MediaOptions = _PUBLISHED,
) -> FrameChoice:
    """Choose the frames of a video from its header; no frame is decoded.

    Where the container does not tell its number of frames, its packets are counted.

    Args:
        source: Video file, address or bytes, see `phi3v.data.paths.locate`.
        max_num_frames: Most frames to take.
        frames_per_second: Frames to take per second.
        image_folder: Folder of relative paths.
        options: What may be opened.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a video or holds no frames.
    """
    file, name = locate(source, image_folder, options)
    with _opened_video(file, name, options.max_image_pixels) as (container, stream):
        rate = stream.average_rate or stream.guessed_rate or DEFAULT_FRAME_RATE
        size = (stream.codec_context.width, stream.codec_context.height)
        num_frames = stream.frames or sum(
            1 for packet in container.demux(stream) if packet.size and not packet.is_discard
        )
    if num_frames < 1 or 0 in size:
        raise Fault(f"{name} holds no video frames; replace it", "no video frames")
    if size[0] * size[1] > options.max_image_pixels:
        raise Fault(
            f"{name} has frames of more than {options.max_image_pixels} pixels; make it smaller, "
            "or raise --max_image_pixels if you trust the file",
            "too many pixels",
        )
    indices = frame_indices(num_frames, rate, max_num_frames, frames_per_second)
    return FrameChoice(indices, size, num_frames, rate)


def sample_frames(
    source: MediaSource,
    max_num_frames: int,
    frames_per_second: float = 1.0,
    image_folder: str | Path | None = None,
    options: MediaOptions = _PUBLISHED,
) -> list[Image.Image]:
    """Decode the frames that `choose_frames` names, seeking to them where that is cheaper.

    Args:
        source: Video file, address or bytes, see `phi3v.data.paths.locate`.
        max_num_frames: Most frames to take.
        frames_per_second: Frames to take per second.
        image_folder: Folder of relative paths.
        options: What may be opened.

    Returns:
        RGB pictures in the order of time.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be decoded, or ends a second or more before its announced end.
    """
    choice = choose_frames(source, max_num_frames, frames_per_second, image_folder, options)
    file, name = locate(source, image_folder, options)
    if choice.indices[-1] >= _MIN_FRAMES_TO_SEEK:
        with _opened_video(file, name, options.max_image_pixels) as opened:
            found = _seek_frames(*opened, choice.indices)
        if found is not None:
            return found
    with _opened_video(file, name, options.max_image_pixels) as (container, stream):
        return _decode_frames(container, stream, choice, name)


def _decode_frames(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    choice: FrameChoice,
    name: str,
) -> list[Image.Image]:
    """Decode a video from its start to the last wanted frame."""
    wanted = set(choice.indices)
    frames: list[Image.Image] = []
    decoded = 0
    last: av.VideoFrame | None = None
    for last in container.decode(stream):
        if decoded in wanted:
            frames.append(last.to_image())
        decoded += 1
        if decoded > choice.indices[-1]:
            return frames
    # Edit lists hide frames that the header counts; within a second the last frame stands in.
    if last is None or choice.num_frames - decoded >= max(1.0, float(choice.average_rate)):
        raise Fault(
            f"{name} announces {choice.num_frames} frames, but only {decoded} could be decoded; "
            "the file is truncated or damaged: replace it",
            "damaged file",
        )
    return frames + [last.to_image()] * (len(choice.indices) - len(frames))


def _seek_frames(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    indices: list[int],
) -> list[Image.Image] | None:
    """Decode frames near key frames only; None where that does not pay or is not surely exact."""
    codec = stream.codec_context.codec.canonical_name
    if codec not in _SEEKABLE_CODECS or container.format.name not in _SEEKABLE_FORMATS:
        return None
    times: list[int] = []
    key_times: list[int] = []
    for packet in container.demux(stream):
        if not packet.size or packet.is_discard:
            continue
        if packet.pts is None:
            return None
        times.append(packet.pts)
        if packet.is_keyframe:
            key_times.append(packet.pts)
    times.sort()
    if len(set(times)) < len(times) or len(times) <= indices[-1] or times[0] not in key_times:
        return None
    places = {time: index for index, time in enumerate(times)}
    runs = plan_runs(indices, sorted(places[time] for time in key_times))
    if runs[-1][0] == 0:
        return None
    frames: list[Image.Image] = []
    for start, wanted in runs:
        try:
            run = _decode_run(container, stream, times, start, wanted)
        except av.error.FFmpegError:  # damaged somewhere: decoding from the start decides
            return None
        if run is None:
            return None
        frames += run
    return frames


def _decode_run(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    times: list[int],
    start: int,
    wanted: list[int],
) -> list[Image.Image] | None:
    """Seek to a key frame and decode; None unless every frame comes at the time of its packet."""
    container.seek(times[start], stream=stream)
    frames: list[Image.Image] = []
    index = start
    for frame in container.decode(stream):
        # In front of the key frame stand pictures that refer to others before the seek.
        if frame.pts is None or (index == start and frame.pts < times[start]):
            continue
        clean = index > start or (frame.key_frame and frame.pict_type == PictureType.I)
        if frame.pts != times[index] or frame.is_corrupt or not clean:
            return None
        if index == wanted[len(frames)]:
            frames.append(frame.to_image())
            if len(frames) == len(wanted):
                return frames
        index += 1
    return None
