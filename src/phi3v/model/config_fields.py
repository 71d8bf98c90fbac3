"""Checks of the fields of a config that are no sizes: types, ranges, rotary factors."""

from collections.abc import Iterable
from math import inf, isfinite
from typing import Any

_ROPE_TYPES = ("su", "yarn", "longrope")
_ROPE_KEYS = {"type", "short_factor", "long_factor"}
_LARGEST_ID = 2**31 - 1


def is_number(value: object, *, above: float = -inf, below: float = inf) -> bool:
    """Tell whether a value is a finite number between two others."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        # Larger whole numbers fit into no tensor, and some not even into a float.
        and (abs(value) < 2**63 if isinstance(value, int) else isfinite(value))
        and above < value < below
    )


def check_numbers(
    owner: object, names: Iterable[str], *, where: str, above: float, below: float = inf
) -> None:
    """Check that fields hold finite numbers between two others.

    Raises:
        ValueError: One does not.
    """
    for name in names:
        value = getattr(owner, name)
        if not is_number(value, above=above, below=below):
            expected = f"above {above:g}" + (f" and below {below:g}" if below < inf else "")
            if above < 0:
                expected = f"of at least 0 and below {below:g}"
            raise ValueError(f"{where}: {name} must be a number {expected}, found {value!r}")


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Check that a field has one of a few values, and their type.

    Raises:
        ValueError: It has not.
    """
    if not any(value == one and type(value) is type(one) for one in choices):
        expected = " or ".join(map(repr, choices))
        raise ValueError(f"{name} must be {expected}, found {value!r}")


def check_token_ids(owner: object, names: Iterable[str]) -> None:
    """Check that fields hold the id of a token, a list of ids, or nothing.

    Raises:
        ValueError: One does not.
    """
    for name in names:
        value = getattr(owner, name)
        for one in value if isinstance(value, list) else [value]:
            if one is not None and not is_token_id(one):
                raise ValueError(f"config: {name} must be the id of a token, found {value!r}")


def is_token_id(value: object) -> bool:
    """Tell whether a value can be the id of a token in any vocabulary."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_ID


def check_rope_scaling(scaling: Any, head_dim: int) -> None:
    """Check the factors of the rotary frequencies.

    Args:
        scaling: Field ``rope_scaling``, not None.
        head_dim: Width of a head; there is a factor for each pair of its dimensions.

    Raises:
        ValueError: They are not as in the published models.
    """
    if not isinstance(scaling, dict) or set(scaling) != _ROPE_KEYS:
        found = sorted(scaling) if isinstance(scaling, dict) else type(scaling).__name__
        raise ValueError(
            f"config: rope_scaling must hold exactly {sorted(_ROPE_KEYS)}, found {found}"
        )
    if scaling["type"] not in _ROPE_TYPES:
        raise ValueError(
            f"config: rope_scaling type must be one of {_ROPE_TYPES}, found {scaling['type']!r}"
        )
    for key in ("short_factor", "long_factor"):
        factors = scaling[key]
        good = isinstance(factors, list) and all(is_number(one, above=0) for one in factors)
        if not good or len(factors) != head_dim // 2:
            raise ValueError(
                f"config: rope_scaling {key} must be a list of {head_dim // 2} numbers "
                f"(half a head), found {len(factors) if good else factors!r}"
            )
