from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.data.conversations import CONVERSATIONS, encode, in_folder, record_of

from phi3v.data.encoding import IGNORE_INDEX, SampleTooLong, lay_out
from phi3v.data.media import load_image
from phi3v.model.processing import Phi3VProcessor

LATER_IMAGE = CONVERSATIONS["image_in_later_turn"]


def test_fault_22_a_long_conversation_loses_whole_turns_from_the_end(
    processor: Phi3VProcessor, image_folder: Path
) -> None:
    whole = encode(record_of(**LATER_IMAGE), processor, image_folder)
    for num_pairs in (1, 2, 3):
        turns = LATER_IMAGE["turns"][: 2 * num_pairs]
        images = LATER_IMAGE["image"][: num_pairs - 1]
        short = encode(
            record_of(turns, system=LATER_IMAGE["system"], image=images), processor, image_folder
        )
        length = len(short["input_ids"])
        for limit in {length, min(length + 1, len(whole["input_ids"]))}:
            cut = encode(record_of(**LATER_IMAGE), processor, image_folder, limit)
            assert cut["num_dropped_turns"] == 6 - 2 * num_pairs
            for key in ("input_ids", "labels"):
                assert cut[key].tolist() == short[key].tolist()
            assert cut["image_sizes"] == short["image_sizes"]
            assert ("pixel_values" in cut) == (num_pairs > 1)


def test_fault_22_every_limit_keeps_whole_images_and_some_labels(
    small_processor: Phi3VProcessor, image_folder: Path
) -> None:
    record = record_of(**CONVERSATIONS["video_and_image"])
    refused = 0
    for limit in range(1, 700, 7):
        try:
            layout = lay_out(
                in_folder(record, image_folder), small_processor, limit, max_num_frames=2
            )
        except SampleTooLong:
            refused += 1
            continue
        assert len(layout.input_ids) <= limit
        places = layout.input_ids.count(small_processor.image_token_id)
        assert places == sum(layout.image_token_counts)
        assert any(label != IGNORE_INDEX for label in layout.labels)
    assert 0 < refused < 100


def test_fault_22_a_record_that_cannot_fit_is_refused_with_its_length(
    processor: Phi3VProcessor, image_folder: Path
) -> None:
    record = record_of(["<image>\nWhat?", "A bus."], image="wide.png")
    length = len(encode(record, processor, image_folder)["input_ids"])
    message = rf"record 'a17' \(index 16 of data.json\): {length} tokens .* {length - 1}; raise"
    with pytest.raises(SampleTooLong, match=message) as error:
        encode(record, processor, image_folder, length - 1)
    assert error.value.length == length


def test_pictures_of_dropped_turns_are_not_decoded(
    small_processor: Phi3VProcessor, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def spy(path: str, *rest: Any, **options: Any) -> Image.Image:
        opened.append(path)
        return load_image(path, *rest, **options)

    monkeypatch.setattr("phi3v.data.encoding.load_image", spy)
    turns = ["<image>", "a", "<image>", "b"]
    record = record_of(turns, image=["square.png", "wide.png"])
    placed = in_folder(record, image_folder)
    length = len(lay_out(placed, small_processor, 131072, max_num_frames=1).input_ids)
    encode(record, small_processor, image_folder, length - 1)
    assert opened == ["square.png"]
