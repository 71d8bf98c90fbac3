"""Opens the pictures of records.

Everything a user's file can do wrong becomes one `ValueError` or `FileNotFoundError` that names
the file. Sizes are read without decoding, so that the length of a sample is known before its pixels
are made. Pictures are taken as the published processor takes them: no EXIF rotation unless asked
for, plain conversion to RGB (16-bit and float greys are clipped, not scaled), and of several frames
or pages the first.
"""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from PIL import ExifTags, Image, ImageOps

from phi3v.data.faults import Fault
from phi3v.data.options import MediaOptions
from phi3v.data.paths import MediaSource, locate

logger = logging.getLogger(__name__)

_PUBLISHED = MediaOptions()
_LYING = (5, 6, 7, 8)  # EXIF orientations that swap width and height


def image_size(
    source: MediaSource,
    image_folder: str | Path | None = None,
    options: MediaOptions = _PUBLISHED,
) -> tuple[int, int]:
    """Read width and height of a picture from its header.

    Args:
        source: Picture file, address or bytes, see `phi3v.data.paths.locate`.
        image_folder: Folder of relative paths.
        options: What may be opened, and whether the EXIF orientation counts.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a readable picture or too large.
    """
    with _opened(source, image_folder, options) as image:
        width, height = image.size
        return (height, width) if _is_lying(image, options) else (width, height)


def load_image(
    source: MediaSource,
    image_folder: str | Path | None = None,
    options: MediaOptions = _PUBLISHED,
    *,
    draft_size: tuple[int, int] | None = None,
) -> Image.Image:
    """Decode a picture fully and convert it to RGB; of several frames or pages, the first.

    Args:
        source: Picture file, address or bytes, see `phi3v.data.paths.locate`.
        image_folder: Folder of relative paths.
        options: What may be opened, and how.
        draft_size: With `options.jpeg_draft`: width and height that a JPEG picture must keep at
            least; it may come out smaller than `image_size` says.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a readable picture, is truncated or too large.
    """
    with _opened(source, image_folder, options) as image:
        if options.jpeg_draft and draft_size is not None:
            size = draft_size[::-1] if _is_lying(image, options) else draft_size
            image.draft("RGB", size)
        image.load()
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            _warn_of_deep_grey(
                str(source) if isinstance(source, str | Path) else "an embedded picture", image.mode
            )
        if options.exif_orientation:
            image = ImageOps.exif_transpose(image)
        # Pillow copies a picture that is RGB already.
        return image if image.mode == "RGB" else image.convert("RGB")


@lru_cache(maxsize=4096)
def _warn_of_deep_grey(name: str, mode: str) -> None:
    """Warn once for each picture, not in every epoch."""
    logger.warning(
        "%s is grey of more than 8 bits (mode %s); values over 255 become white, as in the "
        "published processor. Convert it to 8 bits to keep its shades",
        name,
        mode,
    )


def _is_lying(image: Image.Image, options: MediaOptions) -> bool:
    # Pillow itself turns TIFF pictures, and gives their size so.
    if not options.exif_orientation or image.format == "TIFF":
        return False
    return image.getexif().get(ExifTags.Base.Orientation) in _LYING


@contextmanager
def _opened(
    source: MediaSource, image_folder: str | Path | None, options: MediaOptions
) -> Iterator[Image.Image]:
    file, name = locate(source, image_folder, options)
    limit = options.max_image_pixels
    own_limit = 2 * (Image.MAX_IMAGE_PIXELS or limit)
    if limit > own_limit:
        # Pillow knows one limit per process. It is only ever raised, and checked again below.
        Image.MAX_IMAGE_PIXELS = limit
    try:
        stream = io.BytesIO(file) if isinstance(file, bytes) else file
        with Image.open(stream, formats=options.image_formats) as image:
            if image.width * image.height > limit:
                raise Image.DecompressionBombError
            yield image
    except MemoryError:
        raise
    except Image.DecompressionBombError:
        raise Fault(
            f"{name} has more than {limit} pixels, which may be a trap that fills the memory; make "
            "it smaller, or raise --max_image_pixels if you trust the file",
            "too many pixels",
        ) from None
    except Image.UnidentifiedImageError:
        raise Fault(
            f"{name} is not a picture that PIL can read; convert or remove it",
            "not a picture or video",
        ) from None
    # Damaged files raise nearly anything (OSError, SyntaxError, struct.error, EOFError, ...),
    # depending on the format; for the user all of it means the same.
    except Exception as error:
        raise Fault(
            f"{name} is damaged or truncated ({error}); replace it", "damaged file"
        ) from error
