"""A run goes on from a checkpoint only with the data and flags that it was made with."""

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.training.conftest import Run

from phi3v.data.sources import open_records
from phi3v.training.facts import (
    FACTS_FILE,
    check_same_run,
    compare_facts,
    digest_of_records,
    gather_facts,
)
from phi3v.training.flags import parse_arguments


@pytest.fixture
def facts(flags: list[str], data_folder: Path) -> dict[str, Any]:
    arguments, _ = parse_arguments([*flags, "--lora_enable", "True"])
    return gather_facts(arguments, open_records(data_folder / "data.json"))


def compare(
    facts: dict[str, Any], tmp_path: Path, then: dict[str, Any] | None = None, **now: Any
) -> tuple[list[str], list[str]]:
    """Compare a checkpoint's facts with others; of the arguments, those that are named."""
    old, new = copy.deepcopy(facts), copy.deepcopy(facts)
    for target, changes in ((old, then or {}), (new, now)):
        for name, value in changes.items():
            (target["arguments"] if name in target["arguments"] else target)[name] = value
    (tmp_path / FACTS_FILE).write_text(json.dumps(old))
    return compare_facts(tmp_path, new)


def test_same_run_passes(facts: dict[str, Any], tmp_path: Path) -> None:
    assert compare(facts, tmp_path) == ([], [])


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rate", 3e-4), ("seed", 7), ("lora_rank", 8), ("num_crops", 16), ("bf16", True)],
)
def test_changed_flag_is_refused_with_a_way_out(
    facts: dict[str, Any], tmp_path: Path, name: str, value: Any
) -> None:
    changes, _ = compare(facts, tmp_path, **{name: value})
    assert len(changes) == 1 and f"--{name}: " in changes[0] and f"now {value}" in changes[0]
    with pytest.raises(
        ValueError, match=f"(?s)--{name}.*--resume_with_changes True.*--lora_weight"
    ):
        changed = facts | {"arguments": facts["arguments"] | {name: value}}
        check_same_run(tmp_path, changed, allow_changes=False)
    assert check_same_run(tmp_path, changed, allow_changes=True)


def test_a_longer_run_and_other_versions_are_hints(facts: dict[str, Any], tmp_path: Path) -> None:
    changes, hints = compare(
        facts, tmp_path, max_steps=99, versions=facts["versions"] | {"torch": "2.99"}
    )
    assert not changes
    assert "--max_steps: 2; now 99" in hints[0] and "torch" in hints[1] and "2.99" in hints[1]


PROCESSES = {
    "equal batches": ({"processes": 1, "gradient_accumulation_steps": 4}, {}, None),
    "other batches": ({}, {}, "--gradient_accumulation_steps 1 makes the steps equal"),
    "sharded": ({"gradient_accumulation_steps": 4}, {"is_sharded": True}, "as many parts"),
    "packs": ({"gradient_accumulation_steps": 4}, {"packing": True}, "packs and groups"),
}


@pytest.mark.parametrize("case", PROCESSES)
def test_other_number_of_processes(facts: dict[str, Any], tmp_path: Path, case: str) -> None:
    now, both, expected = PROCESSES[case]
    then = {"processes": 2, "gradient_accumulation_steps": 2} | both
    if case == "other batches":
        now = {"processes": 4, "gradient_accumulation_steps": 2}
    changes, hints = compare(facts, tmp_path, then, **({"processes": 1} | both | now))
    if expected is None:
        assert not changes and "dropout" in hints[0]
    else:
        assert len(changes) == 1 and expected in changes[0]


def test_checkpoint_without_facts_is_a_hint(facts: dict[str, Any], tmp_path: Path) -> None:
    changes, hints = compare_facts(tmp_path, facts)
    assert not changes and "cannot be compared" in hints[0]


def test_digest_sees_a_changed_record_but_no_copy(data_folder: Path, tmp_path: Path) -> None:
    before = digest_of_records(open_records(data_folder / "data.json"))
    shutil.copyfile(data_folder / "data.json", tmp_path / "copy.json")
    os.utime(tmp_path / "copy.json", (1, 1))
    assert digest_of_records(open_records(tmp_path / "copy.json")) == before
    text = (tmp_path / "copy.json").read_text()
    (tmp_path / "copy.json").write_text(text.replace("red and tall", "RED and tall", 1))
    changed = digest_of_records(open_records(tmp_path / "copy.json"))
    assert changed != before and changed.split(",")[0] == before.split(",")[0]


@pytest.mark.slow
def test_changed_data_is_refused_on_resume(
    start: Callable[..., Run], data_folder: Path, tmp_path: Path
) -> None:
    records = json.loads((data_folder / "data.json").read_text())
    own = tmp_path / "own.json"
    own.write_text(json.dumps(records))
    words = ["--data_path", str(own), "--lora_enable", "True", "--save_strategy", "steps"]
    words += ["--save_steps", "1"]
    start(*words)
    own.write_text(json.dumps(records[:-1]))
    with pytest.raises(ValueError, match="8 records.*now 7 records"):
        start(*words, "--max_steps", "3", "--resume_from_checkpoint", "true")
    allowed = ["--resume_with_changes", "True", "--max_steps", "3"]
    assert len(start(*words, *allowed, "--resume_from_checkpoint", "true").losses()) == 3
