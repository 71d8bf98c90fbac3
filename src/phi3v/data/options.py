"""How the media of records are opened: the choices of a user in one place.

The defaults are what the published processor does, and what is safe with files of strangers.
"""

from dataclasses import dataclass

# Where Pillow itself stops: twice its MAX_IMAGE_PIXELS.
MAX_IMAGE_PIXELS = 178_956_970


@dataclass(frozen=True)
class MediaOptions:
    """Which media may be opened, and how pictures are read.

    Attributes:
        exif_orientation: Turn pictures upright by their EXIF tag; the published processor does not.
        max_image_pixels: Pictures of more pixels are refused before they are decoded.
        allow_urls: Fetch http and https addresses.
        allow_absolute_paths: Take absolute paths although an image folder is given.
        image_formats: Names of Pillow's formats that are opened; None takes all. Some, such as EPS,
            start other programs, so a server names those it wants.
        jpeg_draft: Let the JPEG decoder shrink large photos by 2, 4 or 8 on the way: faster, and
            only approximately the published pixels.
    """

    exif_orientation: bool = False
    max_image_pixels: int = MAX_IMAGE_PIXELS
    allow_urls: bool = False
    allow_absolute_paths: bool = False
    jpeg_draft: bool = False
    image_formats: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.max_image_pixels < 1:
            raise ValueError(f"--max_image_pixels is {self.max_image_pixels}, expected at least 1")
