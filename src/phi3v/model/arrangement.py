"""The order of image tokens: which feature of which crop each of them is made from.

Letters: N images, K crops with the global ones, t tokens along a side of a crop, M image tokens.
"""

from collections.abc import Sequence

import numpy as np

from phi3v.model.crops import CropGrid


def crop_places(grids: Sequence[CropGrid], are_stored: Sequence[bool]) -> list[tuple[int, int]]:
    """Find the crops of every image among all: those encoded now, then those stored.

    Encoded ones stand as ``crops_from_compact`` gives them; of a stored image the global crop
    stands before its others.

    Returns:
        For each image the place of its global crop and that of its first other one.
    """
    now = [not stored for stored in are_stored]
    place_of_global, first = 0, sum(now)
    in_store = first + sum(g.rows * g.columns for g, one in zip(grids, now, strict=True) if one)
    places = []
    for grid, encoded in zip(grids, now, strict=True):
        size = grid.rows * grid.columns
        if encoded:
            places.append((place_of_global, first))
            place_of_global, first = place_of_global + 1, first + size
        else:
            places.append((in_store, in_store + 1))
            in_store += 1 + size
    return places


def arrangement(
    grids: Sequence[CropGrid],
    tokens_per_side: int,
    are_stored: Sequence[bool] | None = None,
) -> np.ndarray:
    """List, for every image token, the row of the feature bank that it is made from.

    The bank holds t * t merged features of every crop (N global crops first, then the others), then
    the row separator ``sub_GN``, then ``glb_GN``. One image reads: its map of crops row by row, a
        row separator behind each
    row; ``glb_GN``; the global crop, with row separators too.

    Args:
        grids: Crop grid of every image.
        tokens_per_side: t.
        are_stored: Images whose features are not made now, see ``crop_places``; None for none.

    Returns:
        int64 (M,).

    Source:
        "sub_glb" order of the published modelling code.
    """
    t = tokens_per_side
    per_crop = t * t
    num_crops = len(grids) + sum(grid.rows * grid.columns for grid in grids)
    row_separator, global_separator = num_crops * per_crop, num_crops * per_crop + 1

    def with_row_separators(places: np.ndarray) -> np.ndarray:
        return np.pad(places, ((0, 0), (0, 1)), constant_values=row_separator).ravel()

    parts = []
    places = crop_places(grids, are_stored or [False] * len(grids))
    for (place_of_global, first), grid in zip(places, grids, strict=True):
        num_own = grid.rows * grid.columns
        own = np.arange(first * per_crop, (first + num_own) * per_crop)
        tiles = own.reshape(grid.rows, grid.columns, t, t).transpose(0, 2, 1, 3)
        parts.append(with_row_separators(tiles.reshape(grid.rows * t, grid.columns * t)))
        parts.append(np.array([global_separator]))
        whole = np.arange(place_of_global * per_crop, (place_of_global + 1) * per_crop)
        parts.append(with_row_separators(whole.reshape(t, t)))
    return np.concatenate(parts)
