"""The flags about media, which every command that opens pictures and videos has."""

import argparse
from dataclasses import fields
from typing import Any

from phi3v.data.options import MAX_IMAGE_PIXELS, MediaOptions


def add_media_flags(parser: Any) -> None:
    """Add the flags; each may be written with hyphens, too.

    Args:
        parser: A parser or a group of one.
    """

    def add(name: str, **options: Any) -> None:
        spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        parser.add_argument(*spellings, **options)

    add(
        "exif_orientation",
        action="store_true",
        help="turn pictures upright by their EXIF tag; the published model does not",
    )
    add(
        "max_image_pixels",
        type=int,
        default=MAX_IMAGE_PIXELS,
        help="refuse larger pictures unread (%(default)s)",
    )
    add("allow_urls", action="store_true", help="fetch media from http and https addresses")
    add(
        "allow_absolute_paths",
        action="store_true",
        help="take absolute paths of media although an image folder is given",
    )


def media_options(flags: argparse.Namespace) -> MediaOptions:
    """Collect the flags of `add_media_flags`.

    Raises:
        ValueError: If a value is impossible.
    """
    given = vars(flags)
    names = [field.name for field in fields(MediaOptions) if field.name in given]
    return MediaOptions(**{name: given[name] for name in names})
