import pytest
import torch

from phi3v.data.collator import Collator, common_prefix, pack_row
from phi3v.data.encoding import IGNORE_INDEX, Example

IMAGE = 99


def example(ids: list[int], prompt: int, pixels: torch.Tensor | None = None) -> Example:
    """An example whose tokens from `prompt` on are supervised."""
    input_ids = torch.tensor(ids)
    labels = input_ids.clone()
    labels[:prompt] = IGNORE_INDEX
    made = Example(
        input_ids=input_ids,
        labels=labels,
        image_sizes=[] if pixels is None else [(4, 4)],
        num_dropped_turns=0,
    )
    if pixels is not None:
        made["pixel_values"] = pixels
    return made


def picture(fill: int = 0) -> torch.Tensor:
    return torch.full((1, 3, 4, 4), fill, dtype=torch.uint8)


def test_a_row_without_padding_holds_the_documents_in_order():
    batch = Collator(0, IMAGE, padding_free=True)([example([1, 2, 3], 1), example([1, 5], 1)])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 1, 5]]
    assert batch["labels"].tolist() == [[-100, 2, 3, -100, 5]]
    assert batch["segments"] == [(3, 0, 0), (2, 0, 0)]
    assert batch["label_places"].tolist() == [1, 2, 4]
    assert "attention_mask" not in batch


def test_the_first_token_of_a_document_is_predicted_by_none():
    batch = pack_row([[example([7, 8], 0)], [example([7, 8], 0)]], IMAGE)
    assert batch["labels"].tolist() == [[-100, 8, -100, 8]]


def test_questions_about_one_picture_share_it():
    group = [
        example([1, IMAGE, IMAGE, 4, 5, 6], 5, picture()),
        example([1, IMAGE, IMAGE, 7, 8], 4, picture()),
        example([1, IMAGE, IMAGE, 4, 9, 9], 5, picture()),
    ]
    batch = pack_row([[example([1, 2], 1)], group], IMAGE)
    assert batch["segments"] == [(2, 0, 0), (3, 0, 0), (3, 2, 3), (2, 2, 3), (3, 2, 3)]
    assert batch["input_ids"].tolist() == [[1, 2, 1, IMAGE, IMAGE, 4, 5, 6, 7, 8, 4, 9, 9]]
    assert batch["pixel_values"].shape[0] == 1
    assert batch["image_sizes"] == [(4, 4)]


def test_supervised_tokens_are_never_shared():
    same = [example([1, 2, 3, 4, 5], 2), example([1, 2, 3, 4, 6], 2)]
    # Token 2 is the first label; the token before it predicts it and stays with each document.
    assert common_prefix(same, IMAGE) == 1


def test_different_pictures_of_one_size_are_not_shared():
    group = [
        example([1, IMAGE, 4, 5], 3, picture(1)),
        example([1, IMAGE, 4, 6], 3, picture(2)),
    ]
    batch = pack_row([group], IMAGE)
    assert batch["segments"] == [(4, 0, 0), (4, 0, 0)]
    assert batch["pixel_values"].shape[0] == 2


def test_nothing_is_shared_when_a_picture_stands_behind_the_common_beginning():
    group = [
        example([1, 2, IMAGE, 4], 3, picture()),
        example([1, 3, IMAGE, 4], 3, picture()),
    ]
    assert common_prefix(group, IMAGE) == 0


def test_a_pack_of_groups_makes_a_row_too():
    batch = Collator(0, IMAGE)([[[example([1, 2], 1)], [example([3, 4], 1)]]])
    assert batch["segments"] == [(2, 0, 0), (2, 0, 0)]


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="at least one example"):
        Collator(0, IMAGE)([])
