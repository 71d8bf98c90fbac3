"""How an answer is chosen: the settings of generation, checked."""

from dataclasses import dataclass
from typing import Any


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
