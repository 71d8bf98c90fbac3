from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phi3v.data.histogram import bins, draw_png, draw_text


@pytest.mark.parametrize("values", [[0], [7, 7], [1, 1000], list(range(500)), [3, 4, 10**6]])
def test_every_value_is_in_one_bin_of_at_most_the_wanted_number(values: list[int]) -> None:
    edges, counts = bins(np.array(values), 16)
    assert counts.sum() == len(values) and len(counts) <= 16
    assert edges[0] <= min(values) and max(values) < edges[-1]
    for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
        assert count == sum(left <= value < right for value in values)


def test_a_few_very_long_samples_do_not_flatten_all_others() -> None:
    values = np.append(np.arange(1000, 2000), [90_000])
    edges, counts = bins(values)
    assert len(counts) > 8 and counts[-1] < 20 and edges[-1] == 90_001
    assert draw_text(values).splitlines()[-1].startswith(f"  {edges[-2]:>6,} - 90,000  ")


def test_bars_are_as_long_as_their_counts() -> None:
    lines = draw_text(np.array([1] * 8 + [2] * 2), columns=8, ascii_only=True).splitlines()
    assert [line.split() for line in lines] == [
        ["1", "-", "1", "########", "8"],
        ["2", "-", "2", "##", "2"],
    ]


def test_the_picture_shows_bars_and_marks(tmp_path: Path) -> None:
    values = np.repeat([100, 300], [10, 5])
    draw_png(values, tmp_path / "a.png", title="a", axis="tokens", marks=[(200, "limit")])
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    blue = (pixels == (0x3B, 0x6E, 0xA8)).all(2)
    red = (pixels == (0xC0, 0x30, 0x30)).all(2)
    columns = np.flatnonzero(blue.any(0))
    first, last = blue[:, columns[0] + 2].sum(), blue[:, columns[-1] - 2].sum()
    assert first == pytest.approx(2 * last, abs=2)
    assert columns[0] < np.flatnonzero(red.any(0)).mean() < columns[-1]
