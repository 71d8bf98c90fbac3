"""What is kept, what it serves, and what leaves."""

import numpy as np
import pytest
import torch

from phi3v.inference.prefixes import Prefix, PrefixCache, Regime, common_length

SHORT = Regime(adapted=True, is_long=False)


def tokens(*ids: int) -> np.ndarray:
    return np.array([(one, 0) for one in ids], dtype=np.int64).reshape(-1, 2)


def kept(*ids: int, regime: Regime = SHORT, pictures: str = "") -> Prefix:
    return Prefix(tokens(*ids), [], {one.encode(): torch.zeros(1) for one in pictures}, regime)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [((1, 2, 3), (1, 2, 4), 2), ((1, 2), (1, 2, 3), 2), ((1, 2, 3), (1,), 1), ((5,), (6,), 0)],
)
def test_rows_agree_up_to_their_first_difference(
    first: tuple[int, ...], second: tuple[int, ...], expected: int
) -> None:
    assert common_length(tokens(*first), tokens(*second)) == expected


def test_the_longest_agreement_is_found() -> None:
    prefixes = PrefixCache()
    for ids in ((1, 2, 9), (1, 2, 3, 9), (4,)):
        prefixes.keep(kept(*ids))
    length, found = prefixes.longest(tokens(1, 2, 3, 4), SHORT)
    assert length == 3 and found is not None and len(found.tokens) == 4
    assert prefixes.longest(tokens(7), SHORT) == (0, None)


@pytest.mark.parametrize("regime", [Regime(False, False), Regime(True, True)])
def test_another_regime_finds_nothing(regime: Regime) -> None:
    prefixes = PrefixCache()
    prefixes.keep(kept(1, 2))
    assert prefixes.longest(tokens(1, 2), regime) == (0, None)


def test_a_turn_more_replaces_the_turns_before() -> None:
    prefixes = PrefixCache()
    for one in (kept(1, 2), kept(1, 2, regime=Regime(False, False)), kept(1, 2, 3)):
        prefixes.keep(one)
    assert prefixes.num_tokens == 5


def test_the_least_recently_used_leaves() -> None:
    prefixes = PrefixCache(max_tokens=6)
    prefixes.keep(kept(1, 1))
    prefixes.keep(kept(2, 2))
    prefixes.longest(tokens(1, 1), SHORT)
    prefixes.keep(kept(3, 3, 3))
    assert prefixes.longest(tokens(2), SHORT) == (0, None)
    assert prefixes.longest(tokens(1), SHORT)[0] == 1
    assert prefixes.num_tokens == 5


def test_more_than_the_bound_is_not_kept_and_drives_nothing_out() -> None:
    prefixes = PrefixCache(max_tokens=2)
    prefixes.keep(kept(1, 2))
    prefixes.keep(kept(1, 2, 3))
    assert prefixes.num_tokens == 2


def test_pictures_are_found_past_the_switch_but_not_by_the_other_model() -> None:
    prefixes = PrefixCache()
    prefixes.keep(kept(1, pictures="a"))
    assert prefixes.image_embeds(b"a", adapted=True) is not None
    assert prefixes.image_embeds(b"a", adapted=False) is None
    assert prefixes.image_embeds(b"b", adapted=True) is None


def test_clearing_tells_whether_there_was_anything() -> None:
    prefixes = PrefixCache()
    prefixes.keep(kept(1))
    assert prefixes.clear() and not prefixes.clear()
    assert prefixes.num_tokens == 0
