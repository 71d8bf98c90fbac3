"""Text and pictures made safe to embed in a page."""

import base64
import html
import io
from pathlib import Path

from PIL import Image

SPACE = {"\n", "\t", " "}


def escape(text: str) -> str:
    """Escape text for HTML content and quoted attributes.

    Characters that are invisible or reorder the line (controls, text direction marks) become
    visible marks: what a model wrote must be seen, and must not change how the rest reads.
    """
    shown = (c if c.isprintable() or c in SPACE else "\N{REPLACEMENT CHARACTER}" for c in text)
    return html.escape("".join(shown), quote=True)


def picture_uri(path: Path) -> str:
    """Give a picture as a `data:` URI.

    It is encoded again, JPEG as JPEG and all else as PNG, so that nothing but its pixels reaches
    the page.
    """
    buffer = io.BytesIO()
    with Image.open(path) as image:
        kind = "JPEG" if image.format == "JPEG" else "PNG"
        pixels = image.convert("L" if image.mode == "L" else "RGB")
        pixels.save(buffer, kind, optimize=True)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{encoded}"
