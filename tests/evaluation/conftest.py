import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RECORDS: list[dict[str, Any]] = [
    {"id": "a", "image": "wide.png", "prompt": "What is it?", "reference": ["a strip", "noise"]},
    {"id": "b", "image": ["wide.png", "tall.png"], "prompt": "Which is taller?", "answers": ["2"]},
    {"id": "c", "video": "clip.mkv", "prompt": "What happens?", "reference": "bits flicker"},
    {
        "id": "d",
        "image": "square.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": "Noise."},
            {"from": "human", "value": "Which colour?"},
            {"from": "gpt", "value": "Grey."},
        ],
    },
    {"id": "e", "prompt": "Only words.", "reference": "yes"},
]


def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "val.jsonl", RECORDS)


@pytest.fixture
def evaluate(
    tiny_folder: Path, media_folder: Path, data_file: Path, tmp_path: Path
) -> Callable[..., dict[str, Any]]:
    """Evaluate the tiny model, or what the words name; returns what was written."""
    from phi3v.evaluation.evaluate import main

    def evaluate(*more: str, model: Path | None = tiny_folder) -> dict[str, Any]:
        words = ["--data-path", str(data_file), "--image-folder", str(media_folder)]
        words += ["--output", str(tmp_path / "out"), "--max-new-tokens", "6", "--batch-size", "2"]
        words += ["--model-path", str(model)] if model else []
        assert main([*words, *more]) == 0
        scores = json.loads((tmp_path / "out" / "scores.json").read_text())
        return scores | {"samples": read_lines(tmp_path / "out" / "samples.jsonl")}

    return evaluate
