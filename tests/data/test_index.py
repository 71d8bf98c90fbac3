"""The index of a data file: never trusted when damaged or stale, and built once."""

import json
import logging
import multiprocessing
import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phi3v.data import index
from phi3v.data.records import RawRecords
from phi3v.data.sources import open_records


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Where an index was built."""
    places: list[Path] = []
    build = index._build

    def counted(path: Path, key: Any, place: Path, scan: Any) -> None:
        places.append(place)
        build(path, key, place, scan)

    monkeypatch.setattr(index, "_build", counted)
    yield places


def write(folder: Path, count: int) -> Path:
    path = folder / "data.json"
    path.write_text(json.dumps([{"id": number} for number in range(count)]))
    return path


def ids(source: RawRecords) -> list[int]:
    return [source[number]["id"] for number in range(len(source))]


def place_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.phi3v-index")


def test_the_index_is_kept_beside_the_file_and_used_again(
    tmp_path: Path, builds: list[Path]
) -> None:
    path = write(tmp_path, 10)
    for _ in range(3):
        assert ids(open_records(path)) == list(range(10))
    assert builds == [place_of(path)]
    assert sorted(one.name for one in tmp_path.iterdir()) == [place_of(path).name, "data.json"]


def test_damage_of_any_byte_is_noticed(tmp_path: Path, builds: list[Path]) -> None:
    path = write(tmp_path, 4)
    open_records(path)
    whole = place_of(path).read_bytes()
    for at in range(len(whole)):
        for flip in (1, 255):
            damaged = bytearray(whole)
            damaged[at] ^= flip
            place_of(path).write_bytes(damaged)
            assert ids(open_records(path)) == [0, 1, 2, 3], f"byte {at}"
            assert place_of(path).read_bytes() == whole
    assert len(builds) == 1 + 2 * len(whole)


def test_an_index_of_any_length_is_noticed(tmp_path: Path, builds: list[Path]) -> None:
    path = write(tmp_path, 4)
    open_records(path)
    whole = place_of(path).read_bytes()
    for size in range(len(whole)):
        place_of(path).write_bytes(whole[:size])
        assert ids(open_records(path)) == [0, 1, 2, 3], f"{size} bytes"
    place_of(path).write_bytes(whole + b"\0")
    assert ids(open_records(path)) == [0, 1, 2, 3]
    assert len(builds) == 2 + len(whole)


def test_damage_while_the_file_is_open_is_noticed(tmp_path: Path, builds: list[Path]) -> None:
    path = write(tmp_path, 5000)
    source = open_records(path)
    assert source[0] == {"id": 0}  # checks the first block only
    with place_of(path).open("r+b") as file:
        file.seek(index._HEADER.size + 16 * 3000)
        file.write(bytes(16))
    assert source[3000] == {"id": 3000}
    assert len(builds) == 2


def _change_size(path: Path) -> None:
    path.write_text('[{"id": 7}, {"id": 8}, {"id": 9}]')


def _change_time(path: Path) -> None:
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def _change_content_only(path: Path) -> None:
    stat = path.stat()
    path.write_text(path.read_text().replace('"id": 1', '"id": 5'))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("change", [_change_size, _change_time, _change_content_only])
def test_an_index_of_another_state_of_the_file_is_built_anew(
    tmp_path: Path, builds: list[Path], change: Any
) -> None:
    path = write(tmp_path, 2)
    open_records(path)
    change(path)
    assert ids(open_records(path)) == [one["id"] for one in json.loads(path.read_text())]
    assert len(builds) == 2


def _open(path: Path, log: Path) -> None:
    build = index._build

    def slow(*arguments: Any) -> None:
        with log.open("a") as file:
            file.write("x")
        time.sleep(0.3)
        build(*arguments)

    index._build = slow
    assert open_records(path)[2999] == {"id": 2999}


def test_processes_that_start_together_build_once(tmp_path: Path) -> None:
    path, log = write(tmp_path, 3000), tmp_path / "log"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_open, args=(path, log)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert log.read_text() == "x"
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        place_of(path).name,
        "data.json",
        "log",
    ]


def test_what_a_killed_builder_left_behind_holds_nobody_up(tmp_path: Path) -> None:
    path = write(tmp_path, 3)
    place = place_of(path)
    place.with_name(f"{place.name}.lock").write_bytes(b"")
    place.with_name(f"{place.name}.12345").write_bytes(b"half an index")
    assert ids(open_records(path)) == [0, 1, 2]


def test_a_forked_process_reads_for_itself(tmp_path: Path) -> None:
    source = open_records(write(tmp_path, 2000))
    queue: Any = multiprocessing.get_context("fork").SimpleQueue()
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=lambda start=start: queue.put(source[start]["id"]))
        for start in (0, 700, 1999)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted(queue.get() for _ in processes) == [0, 700, 1999]


def test_a_folder_that_cannot_be_written_to_sends_the_index_to_the_cache(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    builds: list[Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = write(tmp_path, 3)
    # Also root cannot lock a folder as a file.
    place_of(path).with_name(f"{place_of(path).name}.lock").mkdir()
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert ids(open_records(path)) == [0, 1, 2]
    assert [place.parent for place in builds] == [cache / "phi3v"]
    assert caplog.text.count(f"its folder refuses the index; it is in {builds[0]}") == 1


def test_without_any_folder_the_index_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, 3000)
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(
        index, "hidden_places", lambda *_: [tmp_path / "file" / "a", tmp_path / "file" / "b"]
    )
    source = open_records(path)
    assert ids(source) == list(range(3000))
    assert "its index can be written nowhere" in caplog.text


def open_handles(path: Path) -> int:
    """Count this process's descriptors and maps of a data file and its index."""
    links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
    held = [os.readlink(link) for link in links if link.is_symlink()]
    maps = Path("/proc/self/maps").read_text().splitlines()
    names = (str(path), str(place_of(path)))
    return sum(one.endswith(names) for one in (*held, *maps))


def test_file_and_index_are_given_back_with_the_last_reference(tmp_path: Path) -> None:
    path = write(tmp_path, 4)
    records = open_records(path)
    assert ids(records) == list(range(4))
    held = open_handles(path)
    assert held > 0
    again = pickle.loads(pickle.dumps(records))
    assert ids(again) == list(range(4)) and open_handles(path) == 2 * held
    del records
    assert ids(again) == list(range(4)) and open_handles(path) == held
    del again
    assert open_handles(path) == 0


def test_a_file_that_holds_no_records_is_given_back(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match="holds no records"):
        open_records(path)
    assert open_handles(path) == 0
