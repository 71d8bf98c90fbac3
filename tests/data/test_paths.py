from pathlib import Path

import pytest

from phi3v.data.paths import resolve_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "outside.jpg").write_bytes(b"x")
    inside = tmp_path / "images"
    (inside / "sub").mkdir(parents=True)
    (inside / "a.jpg").write_bytes(b"x")
    (inside / "out").symlink_to(tmp_path)
    (inside / "link.jpg").symlink_to(inside / "a.jpg")
    (inside / "loop").symlink_to(inside / "loop")
    return inside


@pytest.mark.parametrize("path", ["a.jpg", "sub/../a.jpg", "link.jpg", "file://a.jpg"])
def test_path_inside_the_folder_is_found(folder: Path, path: str) -> None:
    assert resolve_path(path, folder) == (folder / "a.jpg").resolve()


def test_absolute_path_is_allowed_without_an_image_folder(folder: Path) -> None:
    assert resolve_path(str(folder / "a.jpg")) == folder / "a.jpg"


def test_image_folder_may_itself_be_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(folder)
    assert resolve_path("a.jpg", tmp_path / "alias") == (folder / "a.jpg").resolve()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("../outside.jpg", "leaves the image folder"),
        ("out/outside.jpg", "leaves the image folder"),
        ("https://example.org/a.jpg", "is a URL; download the file"),
        ("data:image/png;base64,AAAA", "is a URL"),
        ("sub", "is not a file"),
        ("loop", "cannot be opened"),
        ("a\0.jpg", "zero byte"),
        ("a" * 5000, "cannot be opened"),
        ("a.jpg/b.jpg", "cannot be opened"),
    ],
)
def test_path_that_is_not_a_file_below_the_folder_is_refused(
    folder: Path, path: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_path(path, folder)


def test_absolute_path_is_refused_beside_an_image_folder(folder: Path) -> None:
    with pytest.raises(ValueError, match="is absolute, but an image folder is given"):
        resolve_path(str(folder / "a.jpg"), folder)


def test_missing_file_is_named_with_its_folder(folder: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match="b.jpg does not exist in the image folder .*images"
    ):
        resolve_path("b.jpg", folder)
