"""Text and pictures made safe to embed in the demo's page."""

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

    It is re-encoded as PNG, so that nothing but its pixels reaches the page.
    """
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.convert("L" if image.mode == "L" else "RGB").save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
