"""Streams: every record once for each pass, in another order each time, and resumable."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from PIL import Image
from tests.data.test_sources import png, write_tar
from torch.utils.data import DataLoader

from phi3v.data import remote, streams
from phi3v.data.collator import Collator
from phi3v.data.examples import UnusableRecord
from phi3v.data.options import MediaOptions
from phi3v.data.streaming import StreamedExamples, StreamPosition
from phi3v.model.processing import Phi3VProcessor

COUNT = 24


def raw(number: int) -> dict[str, Any]:
    turns = [
        {"from": "human", "value": "<image>\nWhich number?"},
        {"from": "gpt", "value": f"Number {number}."},
    ]
    return {"id": str(number), "conversations": turns, "image": "a.png"}


def lines(folder: Path, numbers: range) -> None:
    path = folder / f"{numbers.start:03d}.jsonl"
    path.write_text("".join(json.dumps(raw(number)) + "\n" for number in numbers))


def tar(folder: Path, numbers: range) -> None:
    members = []
    for number in numbers:
        members += [(f"{number}.json", json.dumps(raw(number)).encode())]
        members += [(f"{number}.png", png("red"))]
    write_tar(folder / f"{numbers.start:03d}.tar", members)


def parquet(folder: Path, numbers: range) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    rows = [raw(number) | {"image": {"bytes": png("red"), "path": None}} for number in numbers]
    table = pyarrow.Table.from_pylist(rows)
    write_table(table, folder / f"{numbers.start:03d}.parquet", row_group_size=3)


WRITERS = {"jsonl": lines, "tar": tar, "parquet": parquet}


@pytest.fixture
def make(tmp_path: Path, small_processor: Phi3VProcessor) -> Callable[..., StreamedExamples]:
    """Write 24 records into files of a kind and stream them."""
    Image.new("RGB", (70, 40), "red").save(tmp_path / "a.png")

    def make(kind: str = "jsonl", num_files: int = 1, **settings: Any) -> StreamedExamples:
        size = COUNT // num_files
        if not list(tmp_path.glob(f"*.{kind}")):
            for start in range(0, COUNT, size):
                WRITERS[kind](tmp_path, range(start, start + size))
        pattern = f"{tmp_path}/*.{kind}"
        return StreamedExamples(pattern, small_processor, tmp_path, seed=3, **settings)

    return make


def ids(stream: StreamedExamples, *reader: int, count: int = COUNT, skip: int = 0) -> list[int]:
    """Numbers of the records that one reader meets."""
    items = islice(stream.items(*(reader or (0, 1)), skip=skip), count)
    return [int(item.read()["id"]) for item in items]


@pytest.mark.parametrize("num_files", [1, 2, 6, 8])
@pytest.mark.parametrize("kind", WRITERS)
def test_four_readers_meet_every_record_once(
    kind: str, num_files: int, make: Callable[..., StreamedExamples]
) -> None:
    stream = make(kind, num_files)
    for number in range(2):
        passes = [stream.one_pass(number, reader, 4) for reader in range(4)]
        met = [int(item.read()["id"]) for one in passes for item in one]
        assert sorted(met) == list(range(COUNT))


def test_two_ranks_with_two_workers_each_train_on_every_record_once(
    make: Callable[..., StreamedExamples], small_processor: Phi3VProcessor
) -> None:
    seen = []
    for rank in range(2):
        stream = make("tar", 2, position=StreamPosition(rank, 2, batch_size=3))
        loader = DataLoader(stream, 3, collate_fn=Collator(0, 32044), num_workers=2)
        for batch in islice(loader, 4):
            for labels in batch["labels"]:
                kept = labels[labels != -100].tolist()
                text = small_processor.tokenizer.decode(kept, skip_special_tokens=True)
                seen.append(int(text.removeprefix("Number ").rstrip(".")))
    assert sorted(seen) == list(range(COUNT))


def test_each_pass_has_its_order_and_a_seed_fixes_all(
    make: Callable[..., StreamedExamples],
) -> None:
    stream = make(shuffle_buffer=10)
    two = ids(stream, count=2 * COUNT)
    first, second = two[:COUNT], two[COUNT:]
    assert sorted(first) == sorted(second) == list(range(COUNT))
    assert first != second and first != sorted(first)
    assert ids(make(shuffle_buffer=10), count=2 * COUNT) == two


def test_a_buffer_of_one_keeps_the_order_of_the_file(
    make: Callable[..., StreamedExamples],
) -> None:
    assert ids(make(shuffle_buffer=1)) == list(range(COUNT))


@pytest.mark.parametrize("skip", [1, 7, COUNT, COUNT + 5, 3 * COUNT + 1])
@pytest.mark.parametrize("kind", WRITERS)
def test_skipping_gives_what_would_have_come(
    kind: str, skip: int, make: Callable[..., StreamedExamples]
) -> None:
    stream = make(kind, 2, shuffle_buffer=5)
    whole = ids(stream, count=4 * COUNT)
    assert ids(stream, count=20, skip=skip) == whole[skip : skip + 20]


def test_nothing_is_read_on_the_way_to_where_a_run_stopped(
    make: Callable[..., StreamedExamples], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = make("tar", 2, shuffle_buffer=5)
    read = []
    inner = streams.read_sample
    monkeypatch.setattr(streams, "read_sample", lambda *a: read.append(1) or inner(*a))
    ids(stream, count=2, skip=17)
    assert len(read) == 2


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("num_batches", [1, 2, 5])
def test_a_loader_goes_on_behind_the_batches_that_were_trained_on(
    num_workers: int, num_batches: int, make: Callable[..., StreamedExamples]
) -> None:
    def batches(done: int, count: int) -> list[Any]:
        position = StreamPosition(1, 2, batch_size=2, num_batches=done)
        stream = make(shuffle_buffer=4, position=position)
        loader = DataLoader(stream, 2, collate_fn=Collator(0, 32044), num_workers=num_workers)
        return [batch["input_ids"].tolist() for batch in islice(loader, count)]

    resumed = batches(num_batches, 4)
    whole = batches(0, num_batches + 4)[num_batches:]
    assert resumed == whole


def test_a_bad_record_stops_or_takes_a_place_and_a_long_one_takes_a_place(
    tmp_path: Path, small_processor: Phi3VProcessor, caplog: pytest.LogCaptureFixture
) -> None:
    long = raw(1) | {"image": None}
    long["conversations"][0]["value"] = "word " * 200
    path = tmp_path / "data.jsonl"
    path.write_text(f'{json.dumps(long)}\n{{"id": "x"}}\n{{"id":\n')
    stream = StreamedExamples(
        path, small_processor, None, 100, shuffle_buffer=1, on_bad_record="skip"
    )
    examples = list(islice(stream, 3))
    assert all((one["labels"] == -100).all() for one in examples)
    assert [one.get("is_bad", False) for one in examples] == [False, True, True]
    assert "left out: record '1' (line 1 of data.jsonl): 620 tokens" in caplog.text
    assert "skipped record '2' (line 3 of data.jsonl): malformed JSON" in caplog.text
    stream.on_bad_record = "error"
    with pytest.raises(UnusableRecord, match=r"^record 'x' \(line 2 of data.jsonl\): has neither"):
        list(islice(stream, 2))


def test_fewer_records_than_readers_are_refused(make: Callable[..., StreamedExamples]) -> None:
    stream = make()
    with pytest.raises(ValueError, match="fewer records than there are readers .30"):
        ids(stream, 29, 30)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{}]", "data is a JSON array; write one record per line"),
        ("- a.jsonl", "data is a list of sources; stream one source"),
        ("a,b", "starts with 'a'"),
    ],
)
def test_what_cannot_be_streamed_is_refused(
    tmp_path: Path, small_processor: Phi3VProcessor, content: str, message: str
) -> None:
    (tmp_path / "data").write_text(content)
    with pytest.raises(ValueError, match=message):
        StreamedExamples(tmp_path / "data", small_processor)
    with pytest.raises(FileNotFoundError, match="no/where does not exist; check the path"):
        StreamedExamples("no/where", small_processor)


class Web(SimpleHTTPRequestHandler):
    """Serves files in parts; hangs up after some bytes where it is told to."""

    breaks_after: int | None = None
    knows_parts = True

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content, part = path.read_bytes(), self.headers.get("Range") if self.knows_parts else None
        start = int(part.removeprefix("bytes=").rstrip("-")) if part else 0
        self.send_response(206 if part else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = len(content) if self.breaks_after is None else start + self.breaks_after
        self.wfile.write(content[start:end])

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Web]]]:
    monkeypatch.setattr(remote, "_PAUSE", 0.0)
    handler = type("Handler", (Web,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path)))
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    thread.join()
    server.server_close()


FROM_WEB = MediaOptions(allow_urls=True)


@pytest.mark.parametrize("kind", ["jsonl", "tar"])
@pytest.mark.parametrize("breaks_after", [None, 3000])
def test_files_of_the_web_give_the_records_of_local_ones(
    kind: str,
    breaks_after: int | None,
    make: Callable[..., StreamedExamples],
    web: tuple[str, type[Web]],
    small_processor: Phi3VProcessor,
    tmp_path: Path,
) -> None:
    local = make(kind, 2)
    web[1].breaks_after = breaks_after
    stream = StreamedExamples(
        f"{web[0]}/{{000,012}}.{kind}", small_processor, tmp_path, seed=3, media_options=FROM_WEB
    )
    for reader in range(3):
        assert ids(stream, reader, 3, skip=2) == ids(local, reader, 3, skip=2)
    first, second = next(iter(stream)), next(iter(local))
    assert torch.equal(first["input_ids"], second["input_ids"])
    assert torch.equal(first["pixel_values"], second["pixel_values"])


def test_what_the_web_cannot_give_is_named(
    make: Callable[..., StreamedExamples],
    web: tuple[str, type[Web]],
    small_processor: Phi3VProcessor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make("tar")
    url = f"{web[0]}/000.tar"

    def stream(address: str, options: MediaOptions = FROM_WEB) -> StreamedExamples:
        return StreamedExamples(address, small_processor, tmp_path, media_options=options)

    with pytest.raises(ValueError, match=r"is a URL; give --allow_urls"):
        stream(url, MediaOptions())
    with pytest.raises(ValueError, match=r"no\.tar answers 404"):
        stream(f"{web[0]}/no.tar")
    (tmp_path / "array.json").write_text("[]")
    with pytest.raises(ValueError, match=r"array\.json is a JSON array"):
        stream(f"{web[0]}/array.json")
    web[1].breaks_after = 3000
    web[1].knows_parts = False
    with pytest.raises(ValueError, match=r"the connection broke at byte 3000, and the server"):
        ids(stream(url))
    web[1].breaks_after, web[1].knows_parts = 0, True
    with pytest.raises(
        ValueError, match=r"cannot be read beyond byte 0 .*--resume_from_checkpoint"
    ):
        stream(url)
