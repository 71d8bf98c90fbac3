"""``phi3v check`` finds the same faults in every kind of data set, and names their places."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from phi3v.data.check import main


def picture() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((60, 40), 60).convert("RGB").save(file, "PNG")
    return file.getvalue()


def talk(answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": answer}]


def contents() -> list[tuple[list[dict[str, str]], bytes]]:
    """Four records; 1 has no answer, 2 no picture."""
    return [
        (talk("a"), picture()),
        (talk(" "), picture()),
        (talk("c"), b"no"),
        (talk("d"), picture()),
    ]


def as_lines(folder: Path) -> str:
    records = []
    for number, (turns, content) in enumerate(contents()):
        (folder / f"{number}.png").write_bytes(content)
        records.append({"conversations": turns, "image": f"{number}.png"})
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    return str(folder / "a.jsonl")


def as_parquet(folder: Path) -> str:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    rows = [
        {"conversations": turns, "image": {"bytes": content, "path": None}}
        for turns, content in contents()
    ]
    parquet.write_table(arrow.Table.from_pylist(rows), folder / "a.parquet")
    return str(folder / "a.parquet")


def as_tar(folder: Path) -> str:
    with tarfile.open(folder / "a.tar", "w") as archive:
        for number, (turns, content) in enumerate(contents()):
            text = json.dumps({"conversations": turns}).encode()
            for name, held in ((f"{number}.json", text), (f"{number}.png", content)):
                member = tarfile.TarInfo(name)
                member.size = len(held)
                archive.addfile(member, io.BytesIO(held))
    return str(folder / "a.tar")


def as_mixture(folder: Path) -> str:
    as_lines(folder)
    (folder / "mix.yaml").write_text("- {path: a.jsonl, image_folder: .}\n")
    return str(folder / "mix.yaml")


@pytest.mark.parametrize("write", [as_lines, as_parquet, as_tar, as_mixture])
def test_the_same_faults_are_found_in_every_kind(
    write: Any,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    data = write(tmp_path)
    words = [data, "--model_id", str(tiny_folder), "--json", str(tmp_path / "out.json")]
    if write is as_lines:
        words += ["--image_folder", str(tmp_path)]
    if write is not as_mixture:
        words += ["--write-clean", str(tmp_path / "clean.jsonl")]
    assert main(words) == 1
    report = json.loads((tmp_path / "out.json").read_text())
    found = [(one["index"], one["reason"]) for one in report["problems"]]
    assert found == [(1, "empty answer"), (2, "not a picture or video")]
    assert report["tokens"]["count"] == 2 and report["tokens"]["min"] > 20
    printed = capsys.readouterr().out
    for problem in report["problems"]:
        name = Path(problem["file"]).name
        assert all(f"{name}): " in message for message in problem["messages"])
        assert problem["messages"][0] in printed
    if write is not as_mixture:
        clean = [str(tmp_path / "clean.jsonl"), *words[1:3]]
        assert main([*clean, *(["--image_folder", str(tmp_path)] * (write is as_lines))]) == 0


def test_what_a_weight_repeats_is_reported_once(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_mixture(tmp_path)
    (tmp_path / "mix.yaml").write_text(
        "- {path: a.jsonl, image_folder: ., weight: 2.5}\n"
        "- {path: a.jsonl, image_folder: ., weight: 0.5}\n"
    )
    words = [str(tmp_path / "mix.yaml"), "--model_id", str(tiny_folder)]
    assert main([*words, "--json", str(tmp_path / "out.json")]) == 1
    report = json.loads((tmp_path / "out.json").read_text())
    assert [one["reason"] for one in report["problems"]] == [
        "empty answer",
        "not a picture or video",
    ]
    assert report["records"] == 12 and report["bad"] > 2
    # Only the second source holds records again.
    good = {0, 3}
    groups = report["duplicates"]["groups"]
    assert all(len(group) == 2 and group[0] in good and group[1] >= 10 for group in groups)
    assert capsys.readouterr().out.count("the answer is empty") == 1
