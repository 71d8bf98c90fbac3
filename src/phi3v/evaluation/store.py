"""The output folder of an evaluation: answers as they come, so that a killed run loses none.

Every process appends to a file of its own. What decides the answers is kept beside them; answers
that were made with other settings are never mixed in.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SETTINGS_FILE = "settings.json"
SCORES_FILE = "scores.json"
SAMPLES_FILE = "samples.jsonl"
_ANSWERS = "answers-*.jsonl"


class AnswerStore:
    """Answers by id in a folder.

    Args:
        folder: Output folder of the evaluation.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self, settings: Mapping[str, Any], *, overwrite: bool) -> int:
        """Make the folder, or check that what is in it can be gone on with.

        Lines that were cut off are removed. Only one process may call this.

        Args:
            settings: All that decides the answers, ready for JSON.
            overwrite: Begin anew; an earlier evaluation in the folder is removed.

        Returns:
            How many answers there are already.

        Raises:
            FileExistsError: The folder holds something else, or answers of other settings.
        """
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(f"--output {folder} is a file; name a folder")
        settings = json.loads(json.dumps(settings))
        file = folder / SETTINGS_FILE
        if file.is_file():
            if overwrite:
                self._clear()
            else:
                self._check(json.loads(file.read_text(encoding="utf-8")), settings)
        elif folder.is_dir() and any(folder.iterdir()):
            raise FileExistsError(
                f"--output {folder} is not empty and holds no evaluation; name another folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, settings)
        for part in folder.glob(_ANSWERS):
            whole = part.read_bytes()
            os.truncate(part, whole.rfind(b"\n") + 1)
        return len(self.read())

    def _check(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if changed:
            what = "; ".join(
                f"{name} was {_short(before.get(name))}, is {_short(now.get(name))}"
                for name in changed
            )
            raise FileExistsError(
                f"--output {self.folder} holds answers of other settings ({what}); name another "
                "folder, or begin anew by --overwrite"
            )

    def _clear(self) -> None:
        names = (SETTINGS_FILE, SCORES_FILE, SAMPLES_FILE)
        for path in [*(self.folder / name for name in names), *self.folder.glob(_ANSWERS)]:
            path.unlink(missing_ok=True)

    def read(self) -> dict[str, dict[str, Any]]:
        """Read all answers by id."""
        answers = {}
        for part in sorted(self.folder.glob(_ANSWERS)):
            for line in part.read_text(encoding="utf-8").split("\n")[:-1]:
                answer = json.loads(line)
                answers[answer["id"]] = answer
        return answers

    def append(self, rank: int, answers: Iterable[Mapping[str, Any]]) -> None:
        """Write answers of one process, so that they outlive it."""
        lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in answers)
        part = self.folder / _ANSWERS.replace("*", str(rank))
        with part.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(lines)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file as a whole: a reader sees the old or the new one."""
    draft = path.with_name(path.name + ".tmp")
    text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
    draft.write_text(text, encoding="utf-8", errors="backslashreplace")
    draft.replace(path)


def read_predictions(path: str | Path) -> dict[str, dict[str, Any]]:
    """Read answers from a JSONL file with "id" and "answer", such as ``phi3v generate`` writes.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is something else, or an id stands twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"predictions file {path} does not exist; check the path")
    answers: dict[str, dict[str, Any]] = {}
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            answer = json.loads(line)
            name, found = str(answer["id"]), answer["answer"]
        except (ValueError, KeyError, TypeError):
            found = None
        if not isinstance(found, str):
            raise ValueError(
                f"{path}: line {number} is no prediction; expected one object with 'id' and the "
                "text of an 'answer' per line"
            )
        if name in answers:
            raise ValueError(f"{path}: line {number} answers {name!r} a second time; remove one")
        answers[name] = answer | {"id": name}
    return answers
