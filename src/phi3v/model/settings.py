"""How an answer is chosen: the settings of generation, checked."""

import logging
from dataclasses import dataclass
from typing import Any

from phi3v.model.config_fields import is_number

logger = logging.getLogger(__name__)

# What a checkpoint may say about answers; the rest decides about memory and time.
_SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_KNOWN = ("bos_token_id", "eos_token_id", "pad_token_id", "suppress_tokens", "transformers_version")


@dataclass(frozen=True)
class GenerationSettings:
    """Settings of one answer.

    Attributes:
        max_new_tokens: Most tokens of the answer.
        temperature: 0 takes the likeliest token; above, tokens are drawn.
        top_p: Tokens are drawn from the likeliest ones that make up this share, 0 to 1.
        repetition_penalty: Above 1, tokens that stand in prompt or answer become less likely.
        num_beams: Beams of a beam search.
        static_cache: Use a cache of fixed length; on a GPU, decoding steps are compiled then.
    """

    max_new_tokens: int = 500
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    num_beams: int = 1
    static_cache: bool = False

    def __post_init__(self) -> None:
        for name, accepted, expected in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "0 or above"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
            ("num_beams", self.num_beams >= 1, "at least 1"),
        ):
            if not accepted:
                raise ValueError(f"{name} is {getattr(self, name)}, expected {expected}")
        if self.top_p < 1 and self.temperature == 0:
            raise ValueError(
                f"top_p {self.top_p} has no effect at temperature 0, where nothing is drawn; set a "
                "temperature above 0 or leave top_p out"
            )

    def options(self) -> dict[str, Any]:
        """Write the settings as options of the library's ``generate``."""
        drawing = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}
        static = {"cache_implementation": "static"} if self.static_cache else {}
        return {
            **static,
            "max_new_tokens": self.max_new_tokens,
            "repetition_penalty": self.repetition_penalty,
            "num_beams": self.num_beams,
            # top_k 0: the library would otherwise draw from 50 tokens only, unasked.
            **(drawing | {"top_k": 0} if self.temperature > 0 else {"do_sample": False}),
        }


def sampling_only(stored: Any) -> Any:
    """Take from the generation config of a checkpoint only how tokens are drawn.

    Numbers of beams and sequences, caches and other models are for whoever generates to choose.

    Args:
        stored: ``GenerationConfig`` of a loaded model.

    Returns:
        A new one.

    Raises:
        ValueError: A value is no number.
    """
    fields = {key: value for key, value in stored.to_diff_dict().items() if value is not None}
    kept = {name: fields.pop(name) for name in _SAMPLING if name in fields}
    for name, value in kept.items():
        if not isinstance(value, bool) and not is_number(value, above=-1e-9):
            raise ValueError(f"generation_config.json: {name} is {value!r}, expected a number")
    if dropped := sorted(key for key in fields if key not in _KNOWN and not key.startswith("_")):
        logger.warning(
            "generation_config.json: %s are not taken from a checkpoint; give them to generate()",
            ", ".join(dropped),
        )
    return type(stored)(**kept)
