from pathlib import Path

import pytest

from phi3v.data.attachments import attach, place_tags


def test_files_with_the_suffix_of_a_video_are_videos(media_folder: Path) -> None:
    clip = attach(media_folder / "clip.mkv", max_num_frames=2)
    assert (clip.kind, len(clip.pictures)) == ("video", 2)


def test_other_files_are_pictures(media_folder: Path) -> None:
    assert attach(media_folder / "wide.png").pictures[0].size == (300, 100)


def test_a_file_that_is_no_picture_is_named(media_folder: Path) -> None:
    with pytest.raises(ValueError, match="broken.png is not a picture"):
        attach(media_folder / "broken.png")


def test_tags_stand_in_front_in_the_order_of_the_files() -> None:
    assert place_tags("why?", ["video", "image"]) == "<video>\n<image>\nwhy?"


def test_tags_of_the_text_are_kept() -> None:
    assert place_tags("before <image> after", ["image"]) == "before <image> after"


@pytest.mark.parametrize(
    ("text", "found"),
    [("<image> <image>", "1 picture"), ("<video>", "1 picture"), ("<|image_1|> <image>", "1 pic")],
)
def test_tags_that_do_not_match_are_refused(text: str, found: str) -> None:
    with pytest.raises(
        ValueError, match=f"has the tags {text[:3]}.*comes with {found}".replace("|", r"\|")
    ):
        place_tags(text, ["image"])


def test_a_tag_without_a_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="comes with no picture or video"):
        place_tags("<image>", [])
