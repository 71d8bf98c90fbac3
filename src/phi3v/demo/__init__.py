"""The demo room: the whole path, from data to a merged checkpoint, on bundled handwriting."""
