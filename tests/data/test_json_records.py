"""Reading JSON arrays and files of lines entry by entry, whatever is wrong with them."""

import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3v.data import scanning
from phi3v.data.records import Place
from phi3v.data.sources import open_records

TEXTS = st.text(
    alphabet=st.one_of(
        st.sampled_from('"\\{}[],: \n\u2028é漢'), st.characters(exclude_categories=["Cs"])
    )
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture
def chunk_bytes() -> Iterator[Any]:
    before = scanning.CHUNK_BYTES

    def choose(count: int) -> None:
        scanning.CHUNK_BYTES = count

    yield choose
    scanning.CHUNK_BYTES = before


def write(folder: Path, text: str | bytes, name: str = "data.json") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def scan(text: bytes) -> list[tuple[bytes, bool]]:
    """Entries of an array, and whether each is JSON."""
    scanner = scanning.ArrayScanner(io.BytesIO(text), text.index(b"[") + 1)
    return [(text[start:end], valid) for batch in scanner for start, end, _, valid in batch]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(VALUES, max_size=8),
    st.sampled_from([None, 0, 3]),
    st.booleans(),
    st.sampled_from([1, 2, 7, 1 << 20]),
)
def test_every_entry_of_any_array_is_found_whatever_the_chunks(
    values: list[Any], indent: int | None, ascii_only: bool, size: int
) -> None:
    before, scanning.CHUNK_BYTES = scanning.CHUNK_BYTES, size
    try:
        found = scan(json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode())
    finally:
        scanning.CHUNK_BYTES = before
    assert all(valid for _, valid in found)
    assert [json.loads(text) for text, _ in found] == values


def record(number: int) -> str:
    turns = [{"from": "human", "value": f'q\\" }} ] {number}'}, {"from": "gpt", "value": "a"}]
    return json.dumps({"id": number, "conversations": turns})


FOUR = [record(number) for number in range(4)]
FAULTS = {
    "a quote too many": [FOUR[0], FOUR[1].replace('"a"', '""a"'), FOUR[2], FOUR[3]],
    "no closing brace": [FOUR[0], FOUR[1][:-1], FOUR[2], FOUR[3]],
    "a closing brace too many": [FOUR[0], f"{FOUR[1]}}}", FOUR[2], FOUR[3]],
    "no quote behind a text": [FOUR[0], FOUR[1].replace('"a"', '"a'), FOUR[2], FOUR[3]],
    "words between": [FOUR[0], f"foo bar {FOUR[1]}", FOUR[2], FOUR[3]],
}


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("fault", FAULTS)
def test_reading_goes_on_behind_a_malformed_entry(fault: str, size: int, chunk_bytes: Any) -> None:
    chunk_bytes(size)
    found = scan(f"[{', '.join(FAULTS[fault])}]".encode())
    good = [json.loads(text)["id"] for text, valid in found if valid]
    assert set(good) >= {0, 2, 3} and len(good) == len(set(good))
    assert sum(not valid for _, valid in found) == 1


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    ("text", "good"),
    [
        (f"[{FOUR[0]}, {FOUR[1]}, {FOUR[2][:30]}", [0, 1]),
        (f"[{FOUR[0]}, {FOUR[1]}", [0, 1]),
        (f"[{FOUR[0]}, {FOUR[1]},", [0, 1]),
        (f"[{FOUR[0]} {FOUR[1]}, {FOUR[2]}]", [0, 1, 2]),
        (f"[{FOUR[0]},, {FOUR[1]}, {FOUR[2]},]", [0, 1, 2]),
        (f"[{FOUR[0]}][{FOUR[1]}]", [0, 1]),
    ],
    ids=["cut", "not closed", "cut at a comma", "no comma", "two commas", "two arrays"],
)
def test_a_damaged_array_gives_its_whole_records_and_says_that_it_is_damaged(
    text: str, good: list[int], size: int, chunk_bytes: Any
) -> None:
    chunk_bytes(size)
    found = scan(text.encode())
    assert [json.loads(entry)["id"] for entry, valid in found if valid] == good
    assert not all(valid for _, valid in found)


@pytest.mark.parametrize(
    "text",
    [
        '[{"id": 1}, {"id": 2}]',
        '\n [{"id": 1},\n {"id": 2}]',
        '{"id": 1}\n{"id": 2}\n',
        '{"id": 1}\r\n\r\n{"id": 2}',
        '\ufeff{"id": 1}\n{"id": 2}',
    ],
)
def test_array_and_lines_are_told_apart_by_looking(tmp_path: Path, text: str) -> None:
    source = open_records(write(tmp_path, text))
    assert [source[number] for number in range(len(source))] == [{"id": 1}, {"id": 2}]


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path: Path) -> None:
    source = open_records(write(tmp_path, '{"id": "a\u2028b\x85c"}'))
    assert (len(source), source[0]) == (1, {"id": "a\u2028b\x85c"})


def test_a_place_is_a_line_of_a_file_of_lines_and_an_index_of_an_array(tmp_path: Path) -> None:
    lines = write(tmp_path, '\ufeff{"id": 1}\r\n\r\n{"id": 3}', "data.jsonl")
    assert open_records(lines).place(1) == Place(str(lines), 1, line=3)
    assert str(open_records(lines).place(1)) == "line 3 of data.jsonl"
    array = write(tmp_path, '[{"id": 1},\n {"id": 2}]')
    assert str(open_records(array).place(1)) == "index 1 of data.json"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "data.json: the file is empty; expected a JSON array"),
        (" \n", "the file is empty"),
        ("[]", "holds no records"),
        ("id,text", r"starts with 'i'; expected '\['"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_records(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "number", "message"),
    [
        ('[{"id": 1},\n {"id": }]', 1, r"\(index 1 of data.json\): malformed .* line 2, column 9"),
        ('{"id": 1}\n\n{"id": 2', 1, r"\(line 3 of data.json\): malformed JSON at line 3, column"),
        ('{\n"id": 1}', 0, "malformed JSON at line 1.* one whole object per line"),
        (b'{"id": "\xff"}', 0, "not UTF-8 at byte 8"),
        ('[{"id": 1},, {"id": 2}]', 1, "one comma must stand between two records"),
        ("[" * 200_000, 0, "nested too deeply"),
    ],
)
def test_a_malformed_entry_is_named_when_it_is_read(
    tmp_path: Path, text: str | bytes, number: int, message: str
) -> None:
    source = open_records(write(tmp_path, text))
    with pytest.raises(ValueError, match=message):
        source[number]


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing.json does not exist"):
        open_records(tmp_path / "nothing.json")


def test_a_pickled_copy_is_small_and_reads_the_same(tmp_path: Path) -> None:
    entries = [{"id": number, "text": "word " * 20} for number in range(5000)]
    source = open_records(write(tmp_path, json.dumps(entries)))
    pickled = pickle.dumps(source)
    assert len(pickled) < 2000
    assert pickle.loads(pickled)[4321] == entries[4321]


def test_a_file_that_changes_under_a_reader_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, '{"id": 1}\n{"id": 2}\n')
    source = open_records(path)
    copy = pickle.dumps(source)
    path.write_text('{"id": 1}\n')
    with pytest.raises(ValueError, match="has changed since it was opened"):
        source[1]
    with pytest.raises(ValueError, match="has changed since it was opened"):
        pickle.loads(copy)[0]
