import pytest

from phi3v.evaluation.boxes import box_accuracy, box_iou, overlap, read_box
from phi3v.evaluation.samples import Sample


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, 2, 3, 4]", (1, 2, 3, 4)),
        ("The 2 dogs are at [10.5,20,30,40].", (10.5, 20, 30, 40)),
        ("(1,2),(3,4)", (1, 2, 3, 4)),
        ("<box>[[0.1, 0.2, 0.3, 0.4]]</box>", (0.1, 0.2, 0.3, 0.4)),
        ("1 2 3 4", (1, 2, 3, 4)),
        ("10, 20, 30, 40", (10, 20, 30, 40)),
        ("[1, 2, 3]", None),
        ("no box", None),
        ("12 34", None),
        ("", None),
    ],
)
def test_boxes_are_read(text: str, expected: tuple[float, ...] | None) -> None:
    assert read_box(text) == expected


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ((0, 0, 10, 10), 1.0),
        ((5, 0, 15, 10), 50 / 150),
        ((0, 0, 10, 5), 0.5),
        ((10, 10, 20, 20), 0.0),
        ((20, 20, 30, 30), 0.0),
        ((5, 5, 5, 5), 0.0),
        ((10, 10, 0, 0), 0.0),
    ],
)
def test_overlap(other: tuple[float, ...], expected: float) -> None:
    box = (0.0, 0.0, 10.0, 10.0)
    assert overlap(box, other) == pytest.approx(expected)  # type: ignore[arg-type]


def test_half_an_overlap_is_enough_and_no_box_is_a_miss() -> None:
    samples = [
        Sample("a", ("[0, 0, 10, 10]",), "[0, 0, 10, 5]"),
        Sample("b", ("[0, 0, 10, 10]",), "I cannot see it"),
        Sample("c", ("[0, 0, 10, 10]", "[5, 0, 15, 10]"), "[5, 0, 15, 10]"),
    ]
    assert box_iou(samples).per_sample.tolist() == pytest.approx([0.5, 0, 1])
    assert box_accuracy(samples).score == pytest.approx(2 / 3)


def test_a_reference_without_a_box_is_named() -> None:
    with pytest.raises(ValueError, match="sample 'a': the reference 'left' is no box"):
        box_iou([Sample("a", ("left",), "[1, 2, 3, 4]")])
