"""Files on the web that are read once, from front to back, while they arrive."""

import http.client
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from phi3v.data.fetching import TIMEOUT_SECONDS, WebOnly, shorten

logger = logging.getLogger(__name__)

_CHUNK = 1 << 18
_TRIES = 5
# Seconds before the second try; doubled for each further one.
_PAUSE = 0.5


class RemoteFile:
    """A file behind an address, of which only what is needed next is held.

    It can be read and sought in as a local file, but not back behind what `take` has given away. A
    connection that breaks is made again where it broke.

    Args:
        url: An http or https address.

    Raises:
        ValueError: If there is no answer, or it is an error; also while the file is read.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._answer: Any = None
        self._held = bytearray()
        self._first = 0  # place in the file of the first held byte
        self._place = 0
        self._size: int | None = None
        self._fill(1)

    def __enter__(self) -> "RemoteFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._hang_up()

    def _hang_up(self) -> None:
        if self._answer is not None:
            self._answer.close()
        self._answer = None

    def read(self, size: int = -1) -> bytes:
        """Read bytes from the present place on."""
        end = None if size < 0 else self._place + size
        self._fill(end)
        start = self._place - self._first
        content = bytes(self._held[start : None if end is None else start + size])
        self._place += len(content)
        return content

    def seek(self, place: int, whence: int = 0) -> int:
        """Go to a place from the start (0), from here (1), or the end (2) of the file."""
        if whence == 2:
            self._fill(None)
            place += self._end
        elif whence == 1:
            place += self._place
        assert place >= self._first, "what was taken cannot be read again"
        self._place = place
        return place

    def tell(self) -> int:
        """Tell the present place."""
        return self._place

    def take(self, start: int, end: int) -> bytes:
        """Give a held part of the file, and forget it and all before it."""
        self._fill(end)
        end = min(end, self._end)
        content = bytes(self._held[start - self._first : end - self._first])
        del self._held[: end - self._first]
        self._first = end
        return content

    def lines(self) -> Iterator[bytes]:
        """Give the lines one by one, from what was not taken yet."""
        while True:
            length = self._held.find(b"\n") + 1
            while not length and self._more():
                length = self._held.find(b"\n") + 1
            if not self._held:
                return
            yield self.take(self._first, self._first + (length or len(self._held)))

    @property
    def _end(self) -> int:
        return self._first + len(self._held)

    def _fill(self, end: int | None) -> None:
        """Hold everything up to a place, or up to the end of the file."""
        while (end is None or self._end < end) and self._more():
            pass

    def _more(self) -> bool:
        """Hold a chunk more; False at the end of the file."""
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_PAUSE * 2 ** (attempt - 1))
            try:
                if self._answer is None:
                    if self._size is not None and self._end >= self._size:
                        return False
                    self._open()
                chunk = self._answer.read(_CHUNK)
                if chunk:
                    self._held += chunk
                    return True
                if self._size is None or self._end >= self._size:
                    return False
                reason = f"the connection ended at byte {self._end} of {self._size}"
            except urllib.error.HTTPError as error:
                # It holds the connection.
                error.close()
                if error.code < 500:
                    name = shorten(self.url)
                    message = f"{name} answers {error.code} {error.reason}; check the address"
                    raise ValueError(message) from None
                reason = f"{error.code} {error.reason}"
            except http.client.IncompleteRead as error:
                self._held += error.partial
                reason = str(error)
            except (OSError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", error))
            logger.warning("%s: %s; trying again", shorten(self.url), reason)
            self._hang_up()
        raise ValueError(
            f"{shorten(self.url)} cannot be read beyond byte {self._end} ({reason}); check the "
            "connection, and go on with --resume_from_checkpoint true"
        )

    def _open(self) -> None:
        headers = {"Range": f"bytes={self._end}-"} if self._end else {}
        request = urllib.request.Request(self.url, headers=headers)
        opener = urllib.request.build_opener(WebOnly)
        self._answer = opener.open(request, timeout=TIMEOUT_SECONDS)
        if self._end and self._answer.status != 206:
            raise ValueError(
                f"{shorten(self.url)}: the connection broke at byte {self._end}, and the server "
                "does not send parts of a file; store the file"
            )
        announced = self._answer.headers.get("Content-Length", "")
        if announced.isdigit():
            self._size = self._end + int(announced)
