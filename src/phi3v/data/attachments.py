"""Pictures and videos that a question refers to, and their tags in its text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from phi3v.data.media import load_image, sample_frames
from phi3v.data.options import MediaOptions
from phi3v.data.paths import MediaSource
from phi3v.data.turns import MEDIA_TAG, MediaKind, Turn, expand_tags
from phi3v.model.answers import Conversation

_PUBLISHED = MediaOptions()
VIDEO_SUFFIXES = (
    *(".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv"),
)


@dataclass(frozen=True)
class Attachment:
    """One picture or video of a conversation, decoded.

    Attributes:
        kind: "image" or "video".
        name: How messages name it, usually its path.
        pictures: The picture, or the sampled frames in the order of time.
    """

    kind: MediaKind
    name: str
    pictures: tuple[Image.Image, ...]


def attach(
    source: MediaSource | Image.Image,
    *,
    kind: MediaKind | None = None,
    max_num_frames: int = 10,
    image_folder: str | Path | None = None,
    options: MediaOptions = _PUBLISHED,
) -> Attachment:
    """Open a picture or a video.

    Args:
        source: Path, content of a file, or a picture already in memory.
        kind: None takes files with the suffix of a video for videos and all else for pictures.
        max_num_frames: Most frames of a video.
        image_folder: Folder of relative paths.
        options: Which files may be opened, and how.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read.
    """
    if isinstance(source, Image.Image):
        return Attachment("image", f"picture of {source.width}x{source.height}", (source,))
    if kind is None:
        suffix = "" if isinstance(source, bytes) else Path(source).suffix
        kind = "video" if suffix.lower() in VIDEO_SUFFIXES else "image"
    name = f"embedded {kind}" if isinstance(source, bytes) else str(source)
    if kind == "image":
        return Attachment(kind, name, (load_image(source, image_folder, options),))
    frames = sample_frames(source, max_num_frames, image_folder=image_folder, options=options)
    return Attachment(kind, name, tuple(frames))


def join_turns(turns: Sequence[Turn], attachments: Sequence[Attachment]) -> Conversation:
    """Make a conversation of turns and the opened files of their tags, in reading order."""
    messages = expand_tags(turns, [len(one.pictures) for one in attachments])
    return Conversation(messages, [picture for one in attachments for picture in one.pictures])


def place_tags(text: str, kinds: Sequence[MediaKind]) -> str:
    """Give every picture and video of a question a tag in its text.

    Tags that the text has already are kept; without any, all stand in front, one per line, as in
    LLaVA's training data.

    Args:
        text: The question.
        kinds: What it comes with, in order.

    Returns:
        The question with one tag for each, in the same order.

    Raises:
        ValueError: The text has tags, but not exactly these.
    """
    found = [match.group() for match in MEDIA_TAG.finditer(text)]
    if not found:
        return "".join(f"<{kind}>\n" for kind in kinds) + text
    found_kinds = ["video" if tag == "<video>" else "image" for tag in found]
    if found_kinds != list(kinds):
        raise ValueError(
            f"the text has the tags {' '.join(found)}, but comes with {_count(kinds)}; write one "
            "tag for each in their order, or no tag at all"
        )
    return text


def _count(kinds: Sequence[MediaKind]) -> str:
    if not kinds:
        return "no picture or video"
    return " and ".join(
        f"{kinds.count(kind)} {name}(s)"
        for kind, name in (("image", "picture"), ("video", "video"))
        if kind in kinds
    )
