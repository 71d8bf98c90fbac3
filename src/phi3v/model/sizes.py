"""Sizes in a config: that of the vision tower, and the check of all of them."""

from collections.abc import Iterable
from dataclasses import dataclass

from phi3v.model.config_fields import check_numbers

_WHOLE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
)
# The published decoder has 32; of a billion, the list of their kinds alone would fill the memory.
_MOST_LAYERS = 1024


def check_whole_numbers(owner: object, names: Iterable[str], *, where: str) -> None:
    """Check that fields hold positive whole numbers, and that layers can be listed.

    Raises:
        ValueError: One does not.
    """
    for name in names:
        value = getattr(owner, name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**63:
            raise ValueError(f"{where}: {name} must be a positive whole number, found {value!r}")
        if name == "num_hidden_layers" and value > _MOST_LAYERS:
            raise ValueError(f"{where}: {name} must be at most {_MOST_LAYERS}, found {value}")


@dataclass(frozen=True)
class VisionSize:
    """Shape of the CLIP tower; the defaults are ViT-L/14 at 336 pixels, as published."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 336
    patch_size: int = 14
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse sizes that no tower can have."""
        where = "config: clip_config"
        check_whole_numbers(self, _WHOLE, where=where)
        check_numbers(self, ["layer_norm_eps"], where=where, above=0)
        check_numbers(self, ["attention_dropout"], where=where, above=-1e-9, below=1)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"config: clip_config hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )

    @property
    def patches_per_side(self) -> int:
        """Number of patches along one side of a crop; 24 for 336 / 14."""
        return self.image_size // self.patch_size

    @property
    def tokens_per_side(self) -> int:
        """Image tokens along one side of a crop, after the 2x2 merge; 12 when published."""
        return self.patches_per_side // 2
