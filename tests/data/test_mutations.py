"""Spoiled records and media: what the check passes can be encoded, what it refuses cannot."""

import json
import logging
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.data.mutations import (
    MUTATORS,
    good_media,
    good_record,
    spoil_bytes,
    write_media,
)

from phi3v.data.encoding import encode_record
from phi3v.data.inspection import Inspection, InspectionSettings, inspect_record
from phi3v.data.records import RawRecords, read_record
from phi3v.data.sources import open_records
from phi3v.model.processing import Phi3VProcessor

MAX_FRAMES, LIMIT = 3, 700
TIMED = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_media(tmp_path_factory.mktemp("mutations"))


@pytest.fixture(autouse=True)
def quiet() -> Any:
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def inspect_all(source: RawRecords, processor: Phi3VProcessor, deep: bool) -> list[Inspection]:
    looked = InspectionSettings(LIMIT, MAX_FRAMES, deep=deep)
    return [inspect_record(source, index, processor, looked) for index in range(len(source))]


def encoded_length(source: RawRecords, index: int, processor: Phi3VProcessor) -> int | str:
    """Length of the example, or the error that training would stop with."""
    try:
        record = read_record(source, index)
        example = encode_record(record, processor, LIMIT, max_num_frames=MAX_FRAMES)
    except (ValueError, OSError) as error:
        return str(error)
    return len(example["input_ids"])


def compare(source: RawRecords, processor: Phi3VProcessor, file: str) -> list[Inspection]:
    """Compare what the check says about every record with what training makes of it."""
    inspections = inspect_all(source, processor, deep=True)
    for index, found in enumerate(inspections):
        made = encoded_length(source, index, processor)
        finding = found.finding
        if finding is None or not finding.is_bad:
            assert made == found.length, (index, made, found)
        else:
            assert isinstance(made, str), (index, made, finding)
        for message in finding.messages if finding else ():
            assert message.startswith("record ") and file in message, message
            assert "Traceback" not in message and len(message) < 1500, message
    return inspections


def check_records(seed: random.Random, folder: Path, processor: Phi3VProcessor, path: Path) -> None:
    pictures, clips = good_media(folder)
    records = [good_record(number, pictures, clips, seed) for number in range(12)]
    spoiled = seed.sample(range(12), 8)
    for index in spoiled:
        for _ in range(seed.choice((1, 1, 2))):
            try:
                seed.choice(MUTATORS)(records[index], seed)
            except (IndexError, ValueError):  # nothing of that kind is left
                pass
    if seed.random() < 0.5:
        path.write_text(json.dumps(records))
    else:
        path.write_text("\n".join(map(json.dumps, records)))
    source = open_records(path, folder)
    assert len(source) == 12
    inspections = compare(source, processor, path.name)
    for index in set(range(12)) - set(spoiled):
        finding = inspections[index].finding
        assert finding is None or finding.reason in ("too long", "shortened"), finding


@TIMED
@given(st.randoms(use_true_random=False))
def test_spoiled_records(
    folder: Path, small_processor: Phi3VProcessor, tmp_path_factory: Any, seed: random.Random
) -> None:
    path = tmp_path_factory.getbasetemp() / "records.json"
    check_records(seed, folder, small_processor, path)


def check_media(seed: random.Random, folder: Path, processor: Phi3VProcessor, path: Path) -> None:
    pictures, clips = good_media(folder)
    media = path.parent / "spoiled"
    media.mkdir(exist_ok=True)
    records = []
    for number in range(12):
        kind, names = seed.choice((("image", pictures), ("image", pictures), ("video", clips)))
        name = seed.choice(names)
        content = (folder / name).read_bytes()
        if number % 4:
            content = spoil_bytes(content, seed)
        (media / f"{number}{name}").write_bytes(content)
        turns = [{"from": "human", "value": f"<{kind}>"}, {"from": "gpt", "value": "b"}]
        records.append({"conversations": turns, kind: f"{number}{name}"})
    path.write_text(json.dumps(records))
    source = open_records(path, media)
    deep = compare(source, processor, path.name)
    assert all(deep[index].finding is None for index in range(0, 12, 4))
    # Headers alone never accuse what decoding would accept.
    for shallow, found in zip(inspect_all(source, processor, False), deep, strict=True):
        assert found.finding is not None or shallow.finding is None


@TIMED
@given(st.randoms(use_true_random=False))
def test_spoiled_media(
    folder: Path, small_processor: Phi3VProcessor, tmp_path_factory: Any, seed: random.Random
) -> None:
    check_media(seed, folder, small_processor, tmp_path_factory.getbasetemp() / "media.json")


def check_file(seed: random.Random, folder: Path, processor: Phi3VProcessor, path: Path) -> None:
    pictures, _ = good_media(folder)
    # A fault may reach into the neighbours of a record, not further.
    records = [good_record(number, pictures, ["clip.mkv"], seed) for number in range(9)]
    for number, record in enumerate(records):
        record["id"] = f"r{number}"
    as_lines = seed.random() < 0.5
    texts = [json.dumps(record) for record in records]
    between = "\n" if as_lines else ",\n"
    target = seed.randrange(1, 8)
    texts[target] = spoil_bytes(texts[target].encode(), seed).decode("latin-1")
    content = between.join(texts)
    content_bytes = (content if as_lines else f"[{content}]").encode("latin-1")
    path.write_bytes(content_bytes)
    try:
        lines = [line for line in content_bytes.split(b"\n") if line.strip(b" \t\r")]
        parts = [line.decode() for line in lines] if as_lines else [content_bytes.decode()]
        whole = list(map(json.loads, parts)) if as_lines else json.loads(parts[0])
    except ValueError:
        whole = None
    source = open_records(path, folder)
    inspections = compare(source, processor, path.name)
    malformed = [
        one for one in inspections if one.finding and one.finding.reason == "malformed JSON"
    ]
    assert bool(malformed) == (whole is None)
    if whole is not None:
        assert [source[index] for index in range(len(source))] == whole
    kept = [source[k] for k, one in enumerate(inspections) if one not in malformed]
    for number, record in enumerate(records):
        assert record in kept or abs(number - target) <= (0 if as_lines else 1), number


@TIMED
@given(st.randoms(use_true_random=False))
def test_spoiled_files(
    folder: Path, small_processor: Phi3VProcessor, tmp_path_factory: Any, seed: random.Random
) -> None:
    check_file(seed, folder, small_processor, tmp_path_factory.getbasetemp() / "file.json")
