"""Fetches pictures and videos from addresses, where a user allows it."""

import http.client
import urllib.error
import urllib.request
from functools import lru_cache
from urllib.parse import urlsplit

from phi3v.data.faults import Fault

TIMEOUT_SECONDS = 20
MAX_BYTES = 256 << 20


class WebOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only; the library would also go to ftp."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]  # as in the library
        """Follow, or refuse."""
        if not is_web_address(newurl):
            fp.close()
            raise Fault(
                f"{shorten(req.full_url)} leads to {shorten(newurl)}, no web address",
                "address refused",
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def is_web_address(text: str) -> bool:
    """Tell whether a text is an http or https address."""
    return text.lower().startswith(("http://", "https://"))


def shorten(text: str) -> str:
    """Cut an address for a message."""
    return text if len(text) <= 100 else f"{text[:97]}..."


# An example is laid out by the sizes of its pictures and then decoded: without this, every file
# would be fetched twice.
@lru_cache(maxsize=4)
def fetch(url: str, max_bytes: int = MAX_BYTES, timeout: float = TIMEOUT_SECONDS) -> bytes:
    """Fetch one file.

    Args:
        url: An http or https address.
        max_bytes: Larger files are refused.
        timeout: Longest wait for the server, in seconds.

    Raises:
        ValueError: If there is no answer in time, an error, an empty file or one too large.
    """
    name = shorten(url)
    try:
        # A port that is no number is noticed only when it is asked for.
        _ = urlsplit(url).port
        with urllib.request.build_opener(WebOnly).open(url, timeout=timeout) as answer:
            content = answer.read(max_bytes + 1)
            announced = answer.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        # It holds the connection.
        error.close()
        raise Fault(
            f"{name} answers {error.code} {error.reason}; check the address", "missing file"
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise Fault(
            f"{name} could not be fetched ({reason}); check the address, or write a file's path",
            "missing file",
        ) from None
    if len(content) > max_bytes:
        raise Fault(
            f"{name} has more than {max_bytes} bytes; store it as a file and write its path",
            "address refused",
        )
    if not content or (announced and announced.isdigit() and len(content) < int(announced)):
        raise Fault(f"{name} sent {len(content)} of {announced} bytes; try again", "missing file")
    return content
