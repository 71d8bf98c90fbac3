"""The model card: what a checkpoint is, made of what its run and evaluations left behind."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from phi3v import __version__
from phi3v.evaluation.metrics import METRICS, Score
from phi3v.evaluation.results import BASE, MODEL
from phi3v.evaluation.run_files import Evaluation, RunFiles, before_and_after
from phi3v.evaluation.table import format_interval, format_score

MARK = "<!-- written by phi3v card -->"
_SETTINGS = (
    *("num_train_epochs", "max_steps", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "learning_rate", "vision_lr", "projector_lr"),
    *("lora_rank", "lora_alpha", "lora_dropout", "bits", "num_crops", "max_num_frames"),
    *("max_seq_length", "seed"),
)


@dataclass(frozen=True)
class CardFacts:
    """What the run does not say.

    Attributes:
        name: Title.
        base_model: Hub id of the base, or the name of its folder.
        license: Licence of the weights.
        is_adapter: Whether the folder holds an adapter.
        repository: Hub id that the folder goes to, if it does.
    """

    name: str
    base_model: str
    license: str
    is_adapter: bool
    repository: str | None = None


def build_card(facts: CardFacts, run: RunFiles) -> str:
    """Write the card.

    Paths of this machine are left out: files are named by their last part.

    Args:
        facts: What the run does not say.
        run: What the run and its evaluations left; empty where nothing is known.
    """
    shown = list(run.evaluations)
    if not shown and (joined := before_and_after(run.steps)):
        shown = [joined]
    base = facts.base_model
    link = f"[{base}](https://huggingface.co/{base})" if is_hub_id(base) else f"`{_plain(base)}`"
    kind = "An adapter for" if facts.is_adapter else "A fine-tuned version of"
    sections = [
        _metadata(facts),
        MARK,
        f"# {_plain(facts.name)}",
        f"{kind} {link}, which reads pictures, videos (as frames) and text.",
        *(_scores(one) for one in shown),
        _parts(run.parts),
        _data(run.data),
        _training(run),
        _use(facts),
        f"## Licence\n\n{_plain(facts.license)}, as named by whoever made this model.",
    ]
    return "\n\n".join(text for text in sections if text) + "\n"


def is_hub_id(text: str) -> bool:
    """Tell whether a text reads like the name of a repository on the Hub."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", text) is not None and not text.startswith(".")


def _metadata(facts: CardFacts) -> str:
    content: dict[str, Any] = {
        "license": facts.license,
        "library_name": "peft" if facts.is_adapter else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["phi3_v", "vision", "phi3v", *(["lora"] if facts.is_adapter else [])],
    }
    if is_hub_id(facts.base_model):
        content["base_model"] = facts.base_model
        content["base_model_relation"] = "adapter" if facts.is_adapter else "finetune"
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---"


def _scores(one: Evaluation) -> str:
    scores: Mapping[str, Any] = one.found["scores"]
    models = [name for name in (BASE, MODEL) if name in scores]
    titles = {BASE: "before", MODEL: "after"} if len(models) == 2 else {MODEL: "score"}
    rows = [
        [metric, *(_cell(metric, scores[name].get(metric)) for name in models)]
        for metric in scores[MODEL]
        if metric in METRICS
    ]
    data = _file_name(one.found.get("data", one.folder.name))
    questions = one.found.get("questions", len(one.samples))
    return (
        f"## Scores on {_plain(data)}\n\n{questions} questions; in brackets the middle 95 % of "
        f"resamples of the questions.\n\n{_table(['metric', *(titles[n] for n in models)], rows)}"
    )


def _cell(metric: str, values: Mapping[str, float] | None) -> str:
    if values is None:
        return ""
    score = Score(values["score"], values["low"], values["high"])
    return f"{format_score(metric, score.score)} [{format_interval(metric, score)}]"


def _parts(parts: Sequence[Mapping[str, Any]]) -> str:
    if not parts:
        return ""
    rows = [
        [
            *(str(row["part"]), str(row["method"]), f"{row['trainable']:,}", f"{row['total']:,}"),
            "" if row.get("learning_rate") is None else f"{row['learning_rate']:g}",
        ]
        for row in parts
    ]
    return "## What was trained\n\n" + _table(
        ["part", "method", "trained parameters", "of", "learning rate"], rows
    )


def _data(data: Mapping[str, Any]) -> str:
    rows = []
    for name, numbers in data.items():
        tokens = numbers.get("tokens") or {}
        total = f"{tokens['total']:,.0f}" if "total" in tokens else ""
        rows.append([_file_name(name), f"{numbers.get('records', 0):,}", total])
    return "## Data\n\n" + _table(["data set", "records", "tokens"], rows) if rows else ""


def _training(run: RunFiles) -> str:
    rows = [[name, str(run.flags[name])] for name in _SETTINGS if run.flags.get(name) is not None]
    if "steps" in run.summary:
        rows.append(["steps", f"{run.summary['steps']:,}"])
    rows += [[name, str(version)] for name, version in run.summary.get("versions", {}).items()]
    return "## Training\n\n" + _table(["", ""], rows) if rows else ""


def _use(facts: CardFacts) -> str:
    place = facts.repository or "FOLDER"
    code = [
        *("```python", "from phi3v import load_model, load_processor", ""),
        *(f'model = load_model("{place}")', f'processor = load_processor("{place}")', "```"),
    ]
    lines = [
        "## Use",
        "\n".join(code),
        f"or `phi3v serve --model-path {place}`. Written with phi3v {__version__}.",
    ]
    if not facts.is_adapter:
        lines.append("The files have the published form of the model, so other programs open them.")
    return "\n\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)


def _file_name(path: object) -> str:
    return Path(str(path)).name or str(path)


def _plain(text: str) -> str:
    """Keep text of data from being read as Markdown or HTML."""
    text = " ".join(str(text).split())
    if text == "---":
        return text
    return re.sub(r"([\\`*\[\]<>|#!])", r"\\\1", text)
