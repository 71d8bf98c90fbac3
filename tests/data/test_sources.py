"""Data sets of every kind are told apart by looking and give the same records."""

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from phi3v.data.check import write_clean
from phi3v.data.encoding import encode_record
from phi3v.data.records import RawRecords, read_record
from phi3v.data.sources import open_records
from phi3v.model.processing import Phi3VProcessor

COLOURS = ("red", "green", "blue")


def png(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (70, 40), colour).save(stream, "PNG")
    return stream.getvalue()


def talk(colour: str) -> list[dict[str, str]]:
    return [
        {"from": "human", "value": "<image>\nWhich colour?"},
        {"from": "gpt", "value": f"It is {colour}."},
    ]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for colour in COLOURS:
        (folder / f"{colour}.png").write_bytes(png(colour))
    return folder


def rows(images: Path) -> list[dict[str, Any]]:
    """LLaVA records with paths."""
    return [{"id": c, "image": f"{c}.png", "conversations": talk(c)} for c in COLOURS]


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def sample(colour: str, **more: Any) -> list[tuple[str, bytes]]:
    record = {"conversations": talk(colour), **more}
    return [(f"{colour}.json", json.dumps(record).encode()), (f"{colour}.png", png(colour))]


def datasets() -> Any:
    return pytest.importorskip("datasets")


def as_array(folder: Path, images: Path) -> Any:
    (folder / "data.txt").write_text(json.dumps(rows(images)))
    return folder / "data.txt"


def as_lines(folder: Path, images: Path) -> Any:
    (folder / "data.json").write_text("\n".join(map(json.dumps, rows(images))))
    return folder / "data.json"


def as_messages(folder: Path, images: Path) -> Any:
    lines = []
    for colour in COLOURS:
        content = [
            {"type": "image_url", "image_url": {"url": f"{colour}.png"}},
            {"type": "text", "text": "Which colour?"},
        ]
        answer = {"role": "assistant", "content": f"It is {colour}."}
        lines.append({"id": colour, "messages": [{"role": "user", "content": content}, answer]})
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "data.jsonl"


def as_microsoft(folder: Path, images: Path) -> Any:
    lines = [
        {
            "id": c,
            "source": "s",
            "conversations": [
                {"images": [f"{c}.png"], "user": "Which colour?", "assistant": f"It is {c}."}
            ],
        }
        for c in COLOURS
    ]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "data.jsonl"


def as_parquet_with_bytes(folder: Path, images: Path) -> Any:
    pictures = [{"bytes": png(c), "path": None} for c in COLOURS]
    table = {"id": COLOURS, "image": pictures, "conversations": [talk(c) for c in COLOURS]}
    datasets().Dataset.from_dict(table).to_parquet(folder / "data.parquet")
    return folder / "data.parquet"


def as_parquet_with_paths(folder: Path, images: Path) -> Any:
    table = {key: [row[key] for row in rows(images)] for key in ("id", "image", "conversations")}
    datasets().Dataset.from_dict(table).to_parquet(folder / "data.bin")
    return folder / "data.bin"


def as_saved_folder(folder: Path, images: Path) -> Any:
    library = datasets()
    table = {
        "id": COLOURS,
        "images": [[str(images / f"{c}.png")] for c in COLOURS],
        "texts": [
            [{"user": "Which colour?", "assistant": f"It is {c}.", "source": "s"}] for c in COLOURS
        ],
    }
    data = library.Dataset.from_dict(table).cast_column("images", library.List(library.Image()))
    library.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(folder / "saved")
    return folder / "saved"


def as_hub_folder(folder: Path, images: Path) -> Any:
    (folder / "hub" / "data").mkdir(parents=True)
    source = as_parquet_with_bytes(folder, images)
    source.rename(folder / "hub" / "data" / "train-00000-of-00001.parquet")
    return folder / "hub"


def as_picture_folder(folder: Path, images: Path) -> Any:
    lines = [
        {"file_name": f"{c}.png", "id": c, "question": "Which colour?", "answer": f"It is {c}."}
        for c in COLOURS
    ]
    (images / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    datasets()
    return images


def as_tar(folder: Path, images: Path) -> Any:
    return write_tar(folder / "data.tar", [one for c in COLOURS for one in sample(c)])


def as_tar_pattern(folder: Path, images: Path) -> Any:
    for number, colour in enumerate(COLOURS):
        write_tar(folder / f"shard-{number:03d}.tar", sample(colour, image=f"coco/{colour}.png"))
    return f"{folder}/shard-{{000..002}}.tar"


def as_folder_of_shards(folder: Path, images: Path) -> Any:
    (folder / "shards").mkdir()
    write_tar(folder / "shards" / "a.tar", sample("red", image="red.png"))
    write_tar(folder / "shards" / "b.tar", sample("green", image=["png"]) + sample("blue"))
    return folder / "shards"


def as_several_files(folder: Path, images: Path) -> Any:
    for row in rows(images):
        (folder / f"{row['id']}.jsonl").write_text(json.dumps(row))
    return [folder / f"{colour}.jsonl" for colour in COLOURS]


def as_mixture(folder: Path, images: Path) -> Any:
    first, second, third = (json.dumps(row) for row in rows(images))
    (folder / "lines.jsonl").write_text(f"{first}\n{second}")
    (folder / "array.json").write_text(f"[{third}]")
    text = "# two files\n- {path: lines.jsonl, image_folder: images}\n- array.json\n"
    (folder / "mix").write_text(text)
    return folder / "mix"


KINDS: dict[str, Callable[[Path, Path], Any]] = {
    name.removeprefix("as_"): value for name, value in globals().items() if name[:3] == "as_"
}


def all_of(source: RawRecords) -> list[Any]:
    return [source[number] for number in range(len(source))]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the library's copies of parquet files apart from the user's."""
    library = datasets()
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    library.disable_progress_bars()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_examples(
    kind: str, tmp_path: Path, images: Path, small_processor: Phi3VProcessor
) -> None:
    path = KINDS[kind](tmp_path, images)
    with_paths = "tar" not in kind and "bytes" not in kind and "shards" not in kind
    source = open_records(path, images if with_paths else None)
    (tmp_path / "plain").mkdir()
    expected = open_records(as_array(tmp_path / "plain", images), images)
    copy = pickle.loads(pickle.dumps(source))
    assert len(source) == len(copy) == 3
    for number in range(3):
        record, wanted = read_record(copy, number), read_record(expected, number)
        assert (record.id if kind != "picture_folder" else wanted.id) == wanted.id
        examples = [
            encode_record(one, small_processor, 1000, max_num_frames=1) for one in (record, wanted)
        ]
        assert examples[0]["input_ids"].tolist() == examples[1]["input_ids"].tolist()
        assert examples[0]["pixel_values"].equal(examples[1]["pixel_values"])
        assert record.name.startswith("record '") and "(" in record.name


def test_another_state_has_another_fingerprint(tmp_path: Path, images: Path) -> None:
    path = as_mixture(tmp_path, images)
    before = open_records(path, images).fingerprint()
    assert open_records(path, images).fingerprint() == before
    (tmp_path / "array.json").write_text(json.dumps(rows(images)))
    assert open_records(path, images).fingerprint() != before


def test_weights_repeat_and_draw_the_same_records_each_time(tmp_path: Path) -> None:
    for name in "ab":
        lines = [json.dumps({"id": f"{name}{number}"}) for number in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    mix = tmp_path / "mix.yaml"
    mix.write_text("- {path: a.jsonl, weight: 2.5}\n- {path: b.jsonl, weight: 0.25, name: B}\n")
    ids = [one["id"] for one in all_of(open_records(mix))]
    assert len(ids) == 100 + 10
    assert {ids[:100].count(f"a{number}") for number in range(40)} == {2, 3}
    assert len(set(ids[100:])) == 10 and ids[100:] == sorted(ids[100:], key=lambda i: int(i[1:]))
    assert [one["id"] for one in all_of(open_records(mix))] == ids
    other = [one["id"] for one in all_of(open_records(mix, seed=1))]
    assert other != ids and len(other) == len(ids)


def test_each_source_of_a_mixture_has_its_folder_and_place(tmp_path: Path, images: Path) -> None:
    source = open_records(as_mixture(tmp_path, images), "elsewhere")
    folders = [str(source.image_folder(number)) for number in range(3)]
    assert folders == [str(images), str(images), "elsewhere"]
    places = [str(source.place(number)) for number in range(3)]
    assert places == ["line 1 of lines.jsonl", "line 2 of lines.jsonl", "index 0 of array.json"]


def test_more_shards_than_may_be_open_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phi3v.data.joined._MOST_OPEN", 2)
    for number in range(6):
        (tmp_path / f"{number}.jsonl").write_text(f'{{"id": {number}}}\n{{"id": {number + 10}}}')
    source = open_records(f"{tmp_path}/?.jsonl")
    order = [11, 0, 5, 3, 11, 8, 2]
    assert [source[number]["id"] for number in order] == [15, 0, 12, 11, 15, 4, 1]
    assert len(source._opened) == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {path: none.json}", "source 1: data file .*none.json does not exist"),
        ("- 3", "source 1 is 3; expected a mapping with 'path'"),
        ("- {path: a.jsonl, wieght: 2}", "source 1 has 'wieght'; it may have path, image_folder"),
        ("- {path: a.jsonl, weight: 0}", "source 1: weight is 0; expected a number above 0"),
        ("- {path: a.jsonl, weight: 0.01}", "'a.jsonl' has 2 records: weight 0.01 takes none"),
        ("- {path: a.jsonl, image_folder: none}", "image folder none does not exist"),
        ("- {path: mix.yaml}", "mix.yaml is a list of sources itself"),
        ("- [", "not readable as YAML"),
        ("path: a.jsonl", "expected a list of sources"),
    ],
)
def test_a_faulty_mixture_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 1}\n{"id": 2}')
    (tmp_path / "mix.yaml").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_records(tmp_path / "mix.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x1f\x8b\x08\x00", "is compressed by gzip; unpack it"),
        (b"PK\x03\x04", "is a zip archive"),
        (b"ARROW1\x00\x00", "is a part of a data set; name its folder"),
        (b"PAR1 and so on", "data is damaged or cut off .*; fetch it again"),
        (b"id,text\n", "starts with 'i'; expected '\\['"),
    ],
)
def test_a_file_that_is_no_data_set_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "data").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_records(tmp_path / "data")


def test_a_parquet_file_that_was_cut_off_is_named(tmp_path: Path, images: Path) -> None:
    path = as_parquet_with_bytes(tmp_path, images)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="data.parquet is damaged or cut off"):
        open_records(path)


def test_a_tar_file_that_was_cut_off_gives_its_whole_samples(tmp_path: Path, images: Path) -> None:
    path = as_tar(tmp_path, images)
    ends = open_records(path)._entry(1)[1]  # type: ignore[attr-defined]
    path.write_bytes(path.read_bytes()[: ends + 700])
    source = open_records(path)
    assert [source[number]["id"] for number in range(2)] == ["red", "green"]
    with pytest.raises(ValueError, match=r"\(index 2 of data.tar\): data.tar is damaged or cut"):
        source[2]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", b"x"), ("a.txt", b"y")], "its members are a.png, a.txt; expected one .json"),
        ([("a.json", b"{")], "a.json is not JSON"),
    ],
)
def test_a_sample_without_a_record_is_named(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    source = open_records(write_tar(tmp_path / "x.tar", members))
    with pytest.raises(ValueError, match=rf"^record '0' \(index 0 of x.tar\): {message}"):
        source[0]


def test_pictures_of_a_sample_are_found_by_ending_or_name(tmp_path: Path) -> None:
    record = {"image": ["b.png", "left.jpg"], "conversations": []}
    members = [
        ("d/1.left.jpg", b"L"),
        ("d/1.b.png", b"B"),
        ("d/1.json", json.dumps(record).encode()),
    ]
    found = open_records(write_tar(tmp_path / "x.tar", members))[0]
    assert [one["bytes"] for one in found["image"]] == [b"B", b"L"]
    assert found["id"] == "d/1"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{0..2}.tar", "0.tar of the pattern .* does not exist"),
        ("{2..0}.tar", "runs backwards"),
        ("*.tar", "no file matches"),
        ("", "is a folder of nothing; expected .*tar shards"),
    ],
)
def test_a_pattern_or_folder_without_data_is_refused(
    tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_records(f"{tmp_path}/{name}")


def test_files_of_several_kinds_are_refused(tmp_path: Path, images: Path) -> None:
    as_tar(tmp_path, images)
    as_lines(tmp_path, images)
    with pytest.raises(ValueError, match="files of several kinds: data.json .json., data.tar"):
        open_records(f"{tmp_path}/data.*")


def test_a_split_is_named_where_there_are_several(tmp_path: Path, images: Path) -> None:
    as_saved_folder(tmp_path, images)
    (tmp_path / "mix.yaml").write_text("- {path: saved, split: test}")
    assert len(open_records(tmp_path / "mix.yaml")) == 1
    (tmp_path / "mix.yaml").write_text("- {path: saved, split: dev}")
    with pytest.raises(ValueError, match="has the splits train, test, but not 'dev'"):
        open_records(tmp_path / "mix.yaml")


def test_an_unknown_id_of_the_hub_is_an_error_in_one_line() -> None:
    with pytest.raises(ValueError, match="^nobody/nothing cannot be opened as a data set: "):
        open_records("nobody/nothing")


def test_a_missing_library_is_named(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = as_parquet_with_bytes(tmp_path, images)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'phi3v\[datasets\]'"):
        open_records(path)


def test_clean_records_of_a_parquet_file_are_written_with_their_pictures(
    tmp_path: Path, images: Path
) -> None:
    path = as_parquet_with_bytes(tmp_path, images)
    source = open_records(path)
    write_clean(source, np.array([0, 2]), str(path), str(tmp_path / "clean.jsonl"))
    clean = open_records(tmp_path / "clean.jsonl")
    contents = [read_record(clean, number).turns[0].media[0].content for number in range(2)]
    assert contents == [png("red"), png("blue")]
