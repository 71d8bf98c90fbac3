import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.data.clips import write_clip
from tests.data.conversations import CONVERSATIONS, Listed

from phi3v.data.check import main
from phi3v.data.encoding import encode_record
from phi3v.data.inspection import InspectionSettings
from phi3v.data.options import MediaOptions
from phi3v.data.records import Place, parse_record
from phi3v.data.survey import survey_records
from phi3v.model.processing import Phi3VProcessor

Mutation = Callable[[dict[str, Any], random.Random], None]
BROKEN = [
    "cut.jpg",
    "cut.png",
    "cut.gif",
    "cut.webp",
    "cut.bmp",
    "cut.tif",
    "empty.png",
    "text.png",
]
BROKEN += ["strip.png", "absent.png", "folder", "../outside.png", "link.png", "http://a.b/c.png"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good pictures of every kind, and broken ones of every kind."""
    root = tmp_path_factory.mktemp("check")
    folder = root / "images"
    (folder / "folder").mkdir(parents=True)
    noise = Image.effect_noise((300, 200), 60).convert("RGB")
    for ending in ("jpg", "png", "gif", "webp", "bmp", "tif"):
        noise.save(folder / f"good.{ending}")
        content = (folder / f"good.{ending}").read_bytes()
        (folder / f"cut.{ending}").write_bytes(content[: len(content) // 2])
    # Bytes behind the end of a picture are no fault.
    (folder / "tail.jpg").write_bytes((folder / "good.jpg").read_bytes() + bytes(9000))
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16"):
        source = Image.new("I;16", (40, 30), 77) if mode == "I;16" else noise.convert(mode)
        source.save(folder / f"mode_{mode.replace(';', '')}.tif")
    noise.save(folder / "pages.tif", save_all=True, append_images=[noise])
    noise.save(folder / "moving.gif", save_all=True, append_images=[noise.rotate(90)])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("not a picture")
    Image.new("RGB", (5000, 1)).save(folder / "strip.png")
    noise.save(root / "outside.png")
    (folder / "link.png").symlink_to(root / "outside.png")
    write_clip(folder / "clip.mp4", 25, 10, "mpeg4", "yuv420p")
    content = (folder / "clip.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(content[: len(content) // 2])
    return folder


def good_names(folder: Path) -> list[str]:
    names = (path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".mp4")
    return sorted(name for name in names if name not in BROKEN)


def good_record(number: int, names: list[str], rng: random.Random) -> dict[str, Any]:
    count = rng.randint(0, 3)
    turns = []
    for pair in range(rng.randint(1, 3)):
        tags = "<image>\n" * (count if pair == 0 else 0)
        turns.append({"from": "human", "value": f"{tags}What is {number} and {pair}?"})
        turns.append({"from": "gpt", "value": "An answer."})
    record: dict[str, Any] = {"id": f"r{number}", "conversations": turns}
    if count:
        record["image"] = [rng.choice(names) for _ in range(count)]
    return record


def turn(record: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    return rng.choice(record["conversations"])


def broken_picture(record: dict[str, Any], rng: random.Random) -> None:
    record["image"] = [*record.get("image", []), rng.choice(BROKEN)]
    record["conversations"][0]["value"] += "<image>"


def broken_video(record: dict[str, Any], rng: random.Random) -> None:
    record["video"] = rng.choice(["cut.mp4", "absent.mp4", "empty.png", "text.png"])
    record["conversations"][0]["value"] += "<video>"


MUTATIONS: dict[str, Mutation] = {
    "no_turns": lambda r, rng: r.pop("conversations"),
    "turns_of_wrong_type": lambda r, rng: r.update(conversations=rng.choice([1, "a", {}])),
    "empty_turns": lambda r, rng: r.update(conversations=[]),
    "turn_is_no_object": lambda r, rng: r["conversations"].insert(0, rng.choice([7, "a"])),
    "no_role": lambda r, rng: turn(r, rng).pop("from"),
    "no_text": lambda r, rng: turn(r, rng).pop("value"),
    "unknown_role": lambda r, rng: turn(r, rng).update({"from": rng.choice(["bot", 3])}),
    "text_of_wrong_type": lambda r, rng: turn(r, rng).update(value=rng.choice([1, None, []])),
    "empty_answer": lambda r, rng: r["conversations"][1].update(value=" \n"),
    "no_last_answer": lambda r, rng: r["conversations"].pop(),
    "swapped_roles": lambda r, rng: r["conversations"].reverse(),
    "surplus_tag": lambda r, rng: r["conversations"][0].update(value="<image>" * 5),
    "surplus_picture": lambda r, rng: r.update(
        image=[*r.get("image", []), "good.png"]
    ),
    "image_of_wrong_type": lambda r, rng: r.update(image=rng.choice([5, {}, [None]])),
    "broken_picture": broken_picture,
    "broken_video": broken_video,
}  # fmt: skip


def write(path: Path, records: list[Any]) -> Path:
    path.write_text(json.dumps(records))
    return path


def test_every_fault_of_thousands_is_found_and_none_invented(
    folder: Path, small_processor: Phi3VProcessor
) -> None:
    rng = random.Random(5)
    names = good_names(folder)
    records = [good_record(number, names, rng) for number in range(2000)]
    mutated = set(rng.sample(range(2000), 900))
    for place, index in enumerate(sorted(mutated)):
        list(MUTATIONS.values())[place % len(MUTATIONS)](records[index], rng)
    survey = survey_records(
        Listed(records, folder), small_processor, InspectionSettings(), num_workers=2
    )
    assert set(np.flatnonzero(~survey.is_good())) == mutated
    assert [finding.index for finding in survey.findings] == sorted(mutated)
    for finding in survey.findings:
        for message in finding.messages:
            assert message.startswith(
                f"record 'r{finding.index}' (index {finding.index} of data.json): "
            )
            assert not message.startswith(f"record 'r{finding.index}' (index {finding.index} of "
                                          "data.json): record")  # fmt: skip


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("limit", [40, 131072])
def test_predicted_lengths_are_those_of_the_examples(
    name: str, limit: int, processor: Phi3VProcessor, image_folder: Path
) -> None:
    case = dict(CONVERSATIONS[name])
    system, turns = case.pop("system", None), case.pop("turns")
    entries = [] if system is None else [{"from": "system", "value": system}]
    entries += [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(turns)]
    raw = {"conversations": entries, **case}
    settings = InspectionSettings(limit, max_num_frames=2)
    survey = survey_records(Listed([raw], image_folder), processor, settings)
    record = parse_record(raw, Place("data.json", 0), image_folder)
    if survey.is_good()[0]:
        example = encode_record(record, processor, limit, max_num_frames=2)
        assert survey.lengths.tolist() == [len(example["input_ids"])]
        assert survey.num_supervised[0] == (example["labels"][1:] != -100).sum()
        assert survey.num_pictures[0] == len(example["image_sizes"])
        assert survey.num_crops[0] == len(example.get("pixel_values", ()))
        assert survey.num_dropped_turns[0] == example["num_dropped_turns"]
    else:
        assert survey.findings[0].reason == "too long"
        with pytest.raises(ValueError, match=f"{survey.lengths[0]} tokens up to"):
            encode_record(record, processor, limit, max_num_frames=2)


@pytest.mark.parametrize("turned", [False, True])
def test_predicted_lengths_hold_for_many_sizes_and_orientations(
    turned: bool, small_processor: Phi3VProcessor, tmp_path: Path
) -> None:
    rng = random.Random(1)
    records = []
    for number in range(60):
        exif = Image.Exif()
        exif[0x0112] = rng.randint(1, 8)
        ending = rng.choice(["jpg", "png", "tif", "webp"])
        size = (rng.randint(8, 400), rng.randint(8, 400))
        Image.new("RGB", size).save(tmp_path / f"{number}.{ending}", exif=exif)
        entries = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "b"}]
        records.append({"conversations": entries, "image": f"{number}.{ending}"})
    options = MediaOptions(exif_orientation=turned)
    settings = InspectionSettings(media=options)
    survey = survey_records(Listed(records, tmp_path), small_processor, settings)
    assert not survey.findings
    for index, raw in enumerate(records):
        example = encode_record(
            parse_record(raw, Place("data.json", index), tmp_path),
            small_processor,
            131072,
            max_num_frames=2,
            media_options=options,
        )
        assert survey.lengths[index] == len(example["input_ids"])


def test_the_command_reports_writes_and_tells_by_its_status(
    tiny_folder: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(2)
    records = [good_record(number, ["good.png"], rng) for number in range(20)]
    bad = good_record(20, ["good.png"], rng)
    broken_picture(bad, rng)
    data = write(tmp_path / "data.json", [*records, bad, records[3]])
    words = [str(data), "--model_id", str(tiny_folder), "--image_folder", str(folder)]
    outputs = {name: str(tmp_path / name) for name in ("out.json", "clean.json", "plot.png")}
    words += ["--json", outputs["out.json"], "--write-clean", outputs["clean.json"]]
    words += ["--plot", outputs["plot.png"], "--num_crops", "4", "--eval_data_path", str(data)]
    assert main(words) == 1
    printed = capsys.readouterr().out
    assert "22 records, 1 of them bad" in printed
    assert "\n  record 'r20' (index 20 of data.json)" in printed
    assert "21 of 22 records stand in training, too" in printed
    assert "repeated records              1 (by index: 3 = 21)" in printed
    report = json.loads(Path(outputs["out.json"]).read_text())
    assert [problem["index"] for problem in report["problems"]] == [20]
    assert report["duplicates"] == {"repeats": 1, "groups": [[3, 21]]}
    assert report["eval"]["overlap"]["identical_records"] == 21
    assert json.loads(Path(outputs["clean.json"]).read_text()) == [*records, records[3]]
    with Image.open(outputs["plot.png"]) as plot:
        assert plot.size == (960, 480)
    clean = [outputs["clean.json"], *words[1:5]]
    assert main(clean) == 0


def test_damage_inside_a_picture_is_found_by_deep_only(
    folder: Path, small_processor: Phi3VProcessor, tmp_path: Path
) -> None:
    content = bytearray((folder / "good.png").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = bytes(400)
    (tmp_path / "a.png").write_bytes(content)
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "b"}]
    records = [{"conversations": turns, "image": "a.png"}]
    for deep in (False, True):
        settings = InspectionSettings(deep=deep)
        survey = survey_records(Listed(records, tmp_path), small_processor, settings)
        assert len(survey.findings) == deep


def test_a_record_that_kills_its_process_is_named(small_processor: Phi3VProcessor) -> None:
    survey = survey_records(
        _Deadly([], file="d.json"), small_processor, InspectionSettings(), num_workers=2
    )
    assert [(one.index, one.reason) for one in survey.findings] == [(40, "crash")]
    assert survey.findings[0].messages[0].startswith("record '40' (index 40 of d.json): the proc")


class _Deadly(Listed):
    def __len__(self) -> int:
        return 70

    def __getitem__(self, index: Any) -> Any:
        if index == 40:
            import os

            os._exit(3)
        turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
        return {"conversations": turns}
