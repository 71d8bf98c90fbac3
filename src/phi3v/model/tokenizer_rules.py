"""What a tokenizer of a stranger may do with a text."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

# The published rules give a text one character more.
_MOST_GROWTH = 8


def check_rules(path: str | Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse rules by which a short text would grow without bounds.

    Raises:
        ValueError: A rule replaces text by much longer text, or a limit is no number.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    growth = 1.0
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        for rule in _rules(backend[part]):
            content, pattern = rule.get("content"), rule.get("pattern")
            if rule["type"] == "Replace" and isinstance(content, str) and isinstance(pattern, dict):
                # An expression may match between any two characters.
                length = len(str(pattern.get("String", ""))) or 0.5
                growth *= max(len(content) / length, 1)
    if growth > _MOST_GROWTH:
        raise ValueError(
            f"tokenizer.json of {path} makes texts up to {growth:.3g} times as long; use the "
            "tokenizer files of a Phi-3-vision checkpoint"
        )
    if not isinstance(tokenizer.model_max_length, int | float):
        raise ValueError(
            f"tokenizer_config.json of {path}: model_max_length is "
            f"{tokenizer.model_max_length!r}, expected a number"
        )


def _rules(rule: Any) -> Iterator[dict[str, Any]]:
    """Walk through a rule of tokenizer.json and those that it holds."""
    if isinstance(rule, dict):
        yield rule
        for key in ("normalizers", "pretokenizers", "decoders"):
            for one in rule.get(key, ()):
                yield from _rules(one)
