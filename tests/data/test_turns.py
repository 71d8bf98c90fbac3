import pytest

from phi3v.data.turns import Media, assign_media, expand_tags

A, B, CLIP = Media("image", "a.jpg"), Media("image", "b.jpg"), Media("video", "c.mp4")


def expand(texts: list[str], media: list[Media], num_frames: list[int]) -> list[str]:
    roles = ["user", "assistant"] * len(texts)
    turns = assign_media(list(zip(roles, texts, strict=False)), media)
    return [message["content"] for message in expand_tags(turns, num_frames)]


def test_numbering_runs_through_the_conversation_over_pictures_and_frames() -> None:
    texts = ["<image>\n<video>\nWhat?", "That.", "And <image>?", "This."]
    assert expand(texts, [A, B, CLIP], [1, 3, 1]) == [
        "<|image_1|>\n<|image_2|>\n<|image_3|>\n<|image_4|>\nWhat?",
        "That.",
        "And <|image_5|>?",
        "This.",
    ]


@pytest.mark.parametrize("text", ["<image>What?", " <image> \n\n x", "a<image>b<image>c"])
def test_only_the_tags_of_a_text_change(text: str) -> None:
    media = [A, B][: text.count("<image>")]
    changed = expand([text, "That."], media, [1] * len(media))[0]
    for number in range(1, len(media) + 1):
        changed = changed.replace(f"<|image_{number}|>", "<image>")
    assert changed == text


def test_a_video_before_published_tags_moves_their_numbers() -> None:
    assert expand(["<video><|image_1|>", "a"], [A, CLIP], [2, 1])[0] == (
        "<|image_1|>\n<|image_2|><|image_3|>"
    )
