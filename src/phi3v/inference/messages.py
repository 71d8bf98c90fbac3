"""Messages of strangers: texts with pictures and videos, as page and API take them.

Nothing here opens a path that a stranger wrote: an upload is bytes, or a file that the server
itself put away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from phi3v.data.media import choose_frames, image_size, load_image, sample_frames
from phi3v.data.options import MediaOptions
from phi3v.data.turns import MEDIA_TAG, MediaKind
from phi3v.model.answers import Conversation
from phi3v.model.text import IMAGE_TOKEN, image_tag

# Formats that Pillow reads without another program (EPS would start Ghostscript).
_SAFE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


@dataclass(frozen=True)
class Upload:
    """A picture or video that somebody sent.

    Attributes:
        kind: "image" or "video".
        name: How messages name it.
        content: Its bytes, or the file that holds them.
    """

    kind: MediaKind
    name: str
    content: bytes | Path

    def read(self) -> bytes:
        """Return the bytes.

        Raises:
            ValueError: The file is gone, as old uploads are.
        """
        if isinstance(self.content, bytes):
            return self.content
        try:
            return self.content.read_bytes()
        except OSError:
            raise ValueError(f"{self.name} is no longer on the server; upload it again") from None


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        role: "system", "user" or "assistant".
        parts: Texts and uploads in reading order.
    """

    role: str
    parts: tuple[str | Upload, ...]


@dataclass(frozen=True)
class MediaLimits:
    """What uploads may be.

    Attributes:
        max_uploads: Most pictures and videos of a conversation.
        max_image_pixels: Larger pictures are refused by their header.
        max_num_frames: Most frames of a video.
    """

    max_uploads: int = 32
    max_image_pixels: int = 50_000_000
    max_num_frames: int = 10

    def options(self) -> MediaOptions:
        """Write the limits as options for opening media."""
        Image.init()
        known = tuple(name for name in _SAFE_FORMATS if name in Image.OPEN)
        return MediaOptions(max_image_pixels=self.max_image_pixels, image_formats=known)


def open_messages(messages: Sequence[Message], limits: MediaLimits) -> Conversation:
    """Check messages and open their uploads.

    Args:
        messages: Turns, of which the last is the user's.
        limits: What uploads may be.

    Raises:
        ValueError: An upload is unreadable or too large, there are too many, the order of turns is
            wrong, or a text holds a reserved tag.
    """
    check_messages(messages, limits)
    opened = [_open(upload, limits) for upload in list_uploads(messages)]
    numbered = number_pictures(messages, [len(pictures) for pictures in opened])
    return Conversation(numbered, [picture for pictures in opened for picture in pictures])


def check_messages(messages: Sequence[Message], limits: MediaLimits) -> None:
    """Check the order of turns and the number of uploads.

    Raises:
        ValueError: One of them is wrong.
    """
    _check_order([message.role for message in messages])
    number = len(list_uploads(messages))
    if number > limits.max_uploads:
        raise ValueError(
            f"the conversation has {number} pictures and videos, but at most "
            f"{limits.max_uploads} are taken; leave some out"
        )


def list_uploads(messages: Sequence[Message]) -> list[Upload]:
    """List the uploads of all messages in reading order."""
    return [part for one in messages for part in one.parts if isinstance(part, Upload)]


def number_pictures(messages: Sequence[Message], counts: Sequence[int]) -> list[dict[str, str]]:
    """Write messages for the chat template, with a tag for every picture.

    A tag takes a line of its own, as in LLaVA's training data. Words of the model that look like
    tags lose their brackets; a user's are refused.

    Args:
        messages: Turns.
        counts: Pictures of every upload in reading order.

    Raises:
        ValueError: A text holds a reserved tag.
    """
    waiting, number = iter(counts), 1
    rendered = []
    for message in messages:
        content = ""
        for part in message.parts:
            if isinstance(part, str):
                content += _clean(message.role, part)
                continue
            for _ in range(next(waiting)):
                content += image_tag(number) + "\n"
                number += 1
        rendered.append({"role": message.role, "content": content})
    return rendered


def picture_sizes(upload: Upload, limits: MediaLimits) -> list[tuple[int, int]]:
    """Read width and height of an upload's pictures from its header; nothing is decoded.

    Raises:
        ValueError: As `open_messages` does.
    """
    content, options = upload.read(), limits.options()
    try:
        if upload.kind == "image":
            return [image_size(content, options=options)]
        choice = choose_frames(content, limits.max_num_frames, options=options)
    except ValueError as error:
        raise _in_plain_words(error, upload, content) from error
    return [choice.size] * len(choice.indices)


def _open(upload: Upload, limits: MediaLimits) -> list[Image.Image]:
    content, options = upload.read(), limits.options()
    try:
        if upload.kind == "image":
            return [load_image(content, options=options)]
        return sample_frames(content, limits.max_num_frames, options=options)
    except ValueError as error:
        raise _in_plain_words(error, upload, content) from error


def _in_plain_words(error: ValueError, upload: Upload, content: bytes) -> ValueError:
    """Name the upload, and leave out the advice, which is for owners of data sets."""
    found = str(error).partition(";")[0].replace(" that PIL can read", "")
    return ValueError(found.replace(f"an embedded file of {len(content)} bytes", upload.name))


def _clean(role: str, text: str) -> str:
    if role == "assistant":
        text = MEDIA_TAG.sub(lambda tag: tag.group().strip("<|>"), text)
        return text.replace(IMAGE_TOKEN, "image")
    found = [tag for tag in MEDIA_TAG.findall(text) if tag.startswith("<|")]
    found += [IMAGE_TOKEN] if IMAGE_TOKEN in text else []
    if found:
        raise ValueError(
            f"the {role}'s text holds {found[0]}, which is reserved for pictures; send pictures "
            "beside the text, and leave the tag out"
        )
    return text


def _check_order(roles: Sequence[str]) -> None:
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or turns[-1] != "user":
        raise ValueError("the last message must be the user's")
    if "system" in turns:
        raise ValueError("a system message may stand at the beginning only")
