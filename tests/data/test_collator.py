import torch

from phi3v.data.collator import Collator
from phi3v.data.encoding import Example

IMAGE = 99


def example(
    length: int, image_sizes: list[tuple[int, int]] | None = None, fill: int = 0
) -> Example:
    made = Example(
        input_ids=torch.arange(1, length + 1),
        labels=torch.arange(1, length + 1),
        image_sizes=image_sizes or [],
        num_dropped_turns=0,
    )
    if image_sizes:
        made["pixel_values"] = torch.full((2 * len(image_sizes), 3, 4, 4), fill, dtype=torch.uint8)
    return made


def test_rows_are_padded_on_the_right() -> None:
    batch = Collator(9, IMAGE)([example(2), example(4)])
    assert batch["input_ids"].tolist() == [[1, 2, 9, 9], [1, 2, 3, 4]]
    assert batch["document_lengths"].tolist() == [[2], [4]]
    assert batch["labels"].tolist() == [[1, 2, -100, -100], [1, 2, 3, 4]]


def test_a_pad_token_inside_the_text_stays_visible() -> None:
    assert Collator(2, IMAGE)([example(3)])["document_lengths"].tolist() == [[3]]


def test_batch_of_text_has_no_picture_keys() -> None:
    batch = Collator(0, IMAGE)([example(2), example(3)])
    assert set(batch) == {"input_ids", "document_lengths", "labels", "label_places"}


def test_pictures_are_joined_in_row_order_across_rows_without_any() -> None:
    rows = [example(2, [(4, 8)], fill=1), example(3), example(1, [(8, 4), (4, 4)], fill=2)]
    batch = Collator(0, IMAGE)(rows)
    assert batch["image_sizes"] == [(4, 8), (8, 4), (4, 4)]
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [1, 1, 2, 2, 2, 2]
    assert batch["pixel_values"].dtype == torch.uint8


def test_places_are_those_of_the_flattened_rows() -> None:
    first, second = example(3), example(2, [(4, 4)])
    second["input_ids"] = torch.tensor([IMAGE, 5])
    batch = Collator(0, IMAGE)([first, second])
    # The first token of a row is predicted by none.
    assert batch["label_places"].tolist() == [1, 2, 4]
    assert batch["image_places"].tolist() == [3]
