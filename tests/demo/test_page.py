import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.evaluation.reading import HOSTILE, Reader

from phi3v.demo.page import Sample, Score, terminal_table, write_page


def page(folder: Path, **changes: Any) -> tuple[str, Reader]:
    """Write a page of plain values, with changes, and read it back."""
    picture = folder / "picture.png"
    Image.new("L", (112, 112), 255).save(picture)
    answers = {"question": "Which digit?", "expected": "7", "before": "odd", "after": "7"}
    values: dict[str, Any] = {
        "title": "Demo",
        "rows": [Sample(picture, **(answers | changes.pop("answers", {})))],
        "scores_before": {"digit": Score(48, 500)},
        "scores_after": {"digit": Score(466, 500)},
        "seconds": {"train": 96.31, "merge": 0.8},
        "loss_curve": [(1, 2.5), (2, 1.25), (3, 0.5)],
        "facts": {"seed": "0"},
    }
    write_page(folder / "page.html", **(values | changes))
    document = (folder / "page.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(document)
    assert not reader.open
    return document, reader


def test_page_shows_scores_seconds_answers_and_facts(tmp_path: Path) -> None:
    _, reader = page(tmp_path, facts={"trained": "vision tower: fully"})
    shown = " ".join(reader.text.split())
    for text in ("9.6 %", "466 of 500", "96.3", "97.1", "Which digit?", "vision tower: fully"):
        assert text in shown


def test_hostile_text_is_escaped_everywhere(tmp_path: Path) -> None:
    answers = dict.fromkeys(("question", "expected", "before", "after"), HOSTILE)
    document, reader = page(
        tmp_path,
        title=HOSTILE,
        answers=answers,
        scores_before={HOSTILE: Score(0, 1)},
        scores_after={HOSTILE: Score(1, 1)},
        seconds={HOSTILE: 1.0},
        facts={HOSTILE: HOSTILE},
    )
    tags = [tag for tag, _ in reader.tags]
    assert "script" not in tags
    assert tags.count("img") == 1
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert "\u202e" not in document and "\x00" not in document
    assert reader.text.count("<script>alert(1)</script>") >= 8


def test_page_refers_to_nothing_outside_itself(tmp_path: Path) -> None:
    document, reader = page(tmp_path)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", document)
    outside = {"script", "link", "iframe", "object", "a", "base"}
    assert not outside & {tag for tag, _ in reader.tags}
    sources = [attributes["src"] or "" for _, attributes in reader.tags if "src" in attributes]
    assert len(sources) == 1
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_marks_are_words_not_only_colours(tmp_path: Path) -> None:
    _, reader = page(tmp_path)
    assert reader.text.count("✗ wrong") == 1
    assert reader.text.count("✓ right") == 1


def test_pictures_and_curve_have_descriptions(tmp_path: Path) -> None:
    _, reader = page(tmp_path)
    assert [a["alt"] for tag, a in reader.tags if tag == "img"] == [
        "Held-out picture; the right answer is 7"
    ]
    (svg,) = [attributes for tag, attributes in reader.tags if tag == "svg"]
    assert svg["role"] == "img"
    assert "from 2.5 at step 1 to 0.5 at step 3" in (svg["aria-label"] or "")


def test_page_is_made_for_phones_and_for_dark_screens(tmp_path: Path) -> None:
    document, _ = page(tmp_path)
    assert 'name="viewport" content="width=device-width' in document
    assert "prefers-color-scheme: dark" in document


@pytest.mark.parametrize(("before", "shown"), [("", "(nothing)"), ("ab" * 500, "ab…")])
def test_odd_answers_stay_readable(tmp_path: Path, before: str, shown: str) -> None:
    document, reader = page(tmp_path, answers={"before": before})
    assert shown in reader.text
    assert "ab" * 200 not in document


@pytest.mark.parametrize("curve", [[], [(1, float("nan"))], [(0, 0.0)], [(5, 0.3)], [(1, 1e9)]])
def test_odd_loss_curves_make_a_page(tmp_path: Path, curve: list[tuple[int, float]]) -> None:
    document, _ = page(tmp_path, loss_curve=curve)
    assert "nan," not in document and ",nan" not in document


def test_losses_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    _, reader = page(tmp_path, loss_curve=[(1, 2.0), (2, float("inf")), (3, float("nan"))])
    assert "2 logged values were not finite." in reader.text


def test_scores_of_other_questions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give the same questions in the same order"):
        page(tmp_path, scores_after={"parity": Score(1, 2)})


def test_terminal_table_shows_before_after_and_seconds() -> None:
    table = terminal_table(
        {"Which digit is written here?": Score(48, 500)},
        {"Which digit is written here?": Score(466, 500)},
        {"train": 96.31, "merge": 0.8},
    )
    lines = [line.split() for line in table.splitlines()]
    assert lines[1][-10:] == "48 of 500 9.6 % 466 of 500 93.2 %".split()[-10:]
    assert lines[-1] == ["all", "97.1"]
    assert max(len(line) for line in table.splitlines()) <= 80
