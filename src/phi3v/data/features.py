"""Features of a frozen vision tower on the disk, so that it runs once for every picture.

An entry holds the tower's output for the pictures of an example, bit by bit, behind a digest of it:
for each picture the global crop, then the others. Its name is a digest of the files' bytes and of
all that decides the crops; its folder's name one of the tower's weights and types. Reading never
trusts an entry: a damaged one is a missing one, which is made again. Entries are written aside and
renamed, so any number of processes and hosts may share a folder, and a kill leaves no half entry.

Letters: K crops with the global ones, P patches along a side, D vision width.
"""

import logging
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from phi3v.data.options import MediaOptions
from phi3v.data.paths import MediaSource, locate
from phi3v.data.records import Media

logger = logging.getLogger(__name__)

_DIGEST = 32
# Files are written in here; what a killed process left is removed after so many seconds.
_ASIDE, _STALE = ".writing", 3600


def fingerprint(tensors: Iterable[Tensor], *words: object) -> str:
    """Digest weights, with whatever else decides what is made of them."""
    digest = blake2b(repr(words).encode(), digest_size=16)
    for tensor in tensors:
        plain = tensor.detach().contiguous().cpu()
        digest.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class FeatureCache:
    """Entries of one tower.

    Args:
        folder: Folder of the cache; the tower's entries lie in one of it.
        tower: Fingerprint of the tower.
        shape: Shape of the features of a crop: (P * P, D).
        dtype: Type of the tower's output.
        setting: What else decides the crops: number and size of crops, frames of a video.

    Raises:
        OSError: The folder cannot be made.
    """

    def __init__(
        self,
        folder: str | Path,
        tower: str,
        shape: tuple[int, int],
        dtype: torch.dtype,
        setting: Sequence[int],
    ) -> None:
        self.folder = Path(folder) / tower
        self.folder.mkdir(parents=True, exist_ok=True)
        self.shape = shape
        self.dtype = dtype
        self.setting = tuple(setting)
        self._digests: dict[tuple[str, int, int], str] = {}
        self._remove_stale()

    @property
    def bytes_per_crop(self) -> int:
        """Size of the features of one crop."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def key(
        self, media: Sequence[Media], sizes: Sequence[tuple[int, int]], options: MediaOptions
    ) -> str:
        """Name the entry of the media of an example.

        Args:
            media: The files, in order.
            sizes: Width and height of its pictures, as their headers announce them.
            options: How it is opened.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: One cannot be opened.
        """
        files = [(one.kind, self._digest(one.source, one.folder, options)) for one in media]
        how = (self.setting, options.exif_orientation, options.jpeg_draft)
        return blake2b(f"{files} {list(sizes)} {how}".encode(), digest_size=20).hexdigest()

    def _digest(self, source: MediaSource, folder: str | Path | None, options: MediaOptions) -> str:
        file, _ = locate(source, folder, options)
        if isinstance(file, bytes):
            return blake2b(file, digest_size=20).hexdigest()
        state = file.stat()
        seen = (str(file), state.st_size, state.st_mtime_ns)
        if seen not in self._digests:
            self._digests[seen] = blake2b(file.read_bytes(), digest_size=20).hexdigest()
        return self._digests[seen]

    def read(self, key: str, num_crops: int) -> Tensor | None:
        """Read an entry.

        Args:
            key: Its name.
            num_crops: Crops that it must have.

        Returns:
            (K, P * P, D), or None where there is no entry, or a damaged one.
        """
        path = self._path(key)
        try:
            content = np.fromfile(path, dtype=np.uint8)
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("--cache_vision: %s cannot be read (%s) and is made again", path, error)
            return None
        payload = content[_DIGEST:]
        whole = len(payload) == num_crops * self.bytes_per_crop
        if not whole or content[:_DIGEST].tobytes() != _digest_of(payload):
            logger.warning("--cache_vision: %s is damaged and is made again", path)
            return None
        return torch.from_numpy(payload).view(self.dtype).view(num_crops, *self.shape)

    def write(self, key: str, features: Tensor) -> None:
        """Write an entry (K, P * P, D) in the cache's type.

        Raises:
            OSError: It cannot be written, as where the disk is full; nothing of it is left then.
        """
        assert features.dtype == self.dtype and features.shape[1:] == self.shape
        payload = features.detach().cpu().contiguous().view(torch.uint8).numpy().ravel()
        path = self._path(key)
        aside = self.folder / _ASIDE / uuid.uuid4().hex
        for folder in (path.parent, aside.parent):
            folder.mkdir(exist_ok=True)
        try:
            with aside.open("wb") as file:
                file.write(_digest_of(payload))
                file.write(payload.data)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    def _remove_stale(self) -> None:
        for path in (self.folder / _ASIDE).glob("*"):
            # Another process may do the same, or finish writing.
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE:
                    path.unlink()

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key


def _digest_of(payload: np.ndarray) -> bytes:
    return blake2b(payload.data, digest_size=_DIGEST).digest()
