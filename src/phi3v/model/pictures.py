"""Opens whatever a caller may pass as a picture: PIL picture, path, array or tensor."""

from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

ImageLike: TypeAlias = Image.Image | str | PathLike[str] | np.ndarray | Tensor

# Channels of an array -> Pillow mode.
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def open_picture(image: ImageLike) -> Image.Image:
    """Open one picture, fully decoded and in its own mode.

    Orientation tags of photos are not applied, as in the published processor.

    Args:
        image: PIL picture, path of a picture file, or uint8 array or tensor (H, W), (H, W, C) or
            (C, H, W) with 1 to 4 channels.

    Raises:
        ValueError: If the file is no readable picture, or the array has another shape or dtype.
        FileNotFoundError: If the path does not exist.
    """
    if isinstance(image, Image.Image):
        image.load()
        return image
    if isinstance(image, (str, PathLike)):
        return _read(Path(image))
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
    if isinstance(image, np.ndarray):
        return _from_array(image)
    raise ValueError(
        f"picture is a {type(image).__name__}, expected a PIL picture, a path, an array or a "
        "tensor; several pictures must come as one flat list"
    )


def _read(path: Path) -> Image.Image:
    if not path.exists():
        raise FileNotFoundError(f"picture {path} does not exist; check the path and image folder")
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except MemoryError:
        raise
    # Pillow reports broken files by nearly any error, depending on the format.
    except Exception as error:
        raise ValueError(
            f"picture {path} cannot be read ({error}); replace or remove it"
        ) from error


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8:
        raise ValueError(
            f"picture array has dtype {array.dtype}, expected uint8 from 0 to 255; "
            "for values from 0 to 1 multiply by 255 and convert"
        )
    if array.ndim == 3 and array.shape[-1] not in _MODES and array.shape[0] in _MODES:
        array = array.transpose(1, 2, 0)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[-1] not in _MODES or 0 in array.shape:
        raise ValueError(
            f"picture array has shape {array.shape}, expected (height, width), (height, width, "
            "channels) or (channels, height, width) with 1 to 4 channels"
        )
    if array.shape[-1] == 1:
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(array))
