"""A small base, a data set of every kind of sample, and runs over them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.data.clips import write_clip

from phi3v.model.processing import Phi3VProcessor
from phi3v.model.tiny import write_tiny_checkpoint
from phi3v.training import preparing, train
from phi3v.training.flags import parse_arguments
from phi3v.training.parts import PARTS, own_parameters
from phi3v.training.trainer import Phi3VTrainer

TURN = ("<image>\nWhat is this?", "A bus, red and tall.")


@dataclass
class Run:
    """A finished run, and the values of all parameters before its first step."""

    trainer: Phi3VTrainer
    folder: Path
    before: dict[str, torch.Tensor]

    @property
    def model(self) -> Any:
        return self.trainer.model

    def changed(self) -> set[str]:
        return {
            name
            for name, parameter in self.model.named_parameters()
            if not torch.equal(parameter.detach().cpu(), self.before[name].cpu())
        }

    def losses(self) -> list[float]:
        return [line["loss"] for line in self.trainer.state.log_history if "loss" in line]


def record(number: int, turns: list[tuple[str, str]], **media: Any) -> dict[str, Any]:
    entries = [
        {"from": who, "value": text}
        for turn in turns
        for who, text in zip(("human", "gpt"), turn, strict=True)
    ]
    return {"id": f"r{number}", "conversations": entries, **media}


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(
        tmp_path_factory.mktemp("base") / "model",
        crop_size=56,
        # bitsandbytes quantises in blocks of 64.
        hidden_size=64,
        vision_hidden_size=32,
        num_crops=4,
    )


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data.json``: text only, one picture, a second one in a later turn, a video; twice."""
    folder = tmp_path_factory.mktemp("data")
    for name, size in {"wide": (110, 50), "square": (56, 56)}.items():
        Image.effect_noise(size, 60).convert("RGB").save(folder / f"{name}.png")
    write_clip(folder / "clip.mkv", num_frames=4, rate=1)
    records = []
    for number in (0, 4):
        records += [
            record(number, [("Hello", f"Hi, number {number}."), ("Who?", "Me.")]),
            record(number + 1, [TURN], image="wide.png"),
            record(
                number + 2,
                [TURN, ("<image>\nAnd this?", "Not a bus.")],
                image=["square.png", "wide.png"],
            ),
            record(number + 3, [("<video>\nWhat happens?", "Bits.")], video="clip.mkv"),
        ]
    (folder / "data.json").write_text(json.dumps(records))
    return folder


@pytest.fixture(scope="session")
def flags(base_folder: Path, data_folder: Path) -> list[str]:
    """Flags of a short run on the small base, without output folder."""
    return [
        *("--model_id", str(base_folder), "--data_path", str(data_folder / "data.json")),
        *("--image_folder", str(data_folder), "--num_crops", "2", "--max_num_frames", "2"),
        *("--use_cpu", "True", "--dataloader_num_workers", "0", "--report_to", "none"),
        *("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1"),
        *("--max_steps", "2", "--learning_rate", "1e-3", "--lr_scheduler_type", "constant"),
        *("--lora_rank", "4", "--lora_alpha", "8", "--save_strategy", "no"),
        *("--disable_tqdm", "True"),
    ]


@pytest.fixture
def start(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Train with more flags; ``folder`` names the output folder."""

    def start(*more: str, folder: str = "out") -> Run:
        before: dict[str, torch.Tensor] = {}
        build_model = preparing.build_model

        def watched(*args: Any) -> Any:
            model = build_model(*args)
            before.update({name: p.detach().clone() for name, p in model.named_parameters()})
            return model

        target = tmp_path / folder
        with monkeypatch.context() as patch:
            patch.setattr(preparing, "build_model", watched)
            arguments, _ = parse_arguments([*flags, "--output_dir", str(target), *more])
            trainer = train.run(arguments)
        return Run(trainer, target, before)

    return start


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    return Image.effect_noise((100, 56), 80).convert("RGB")


@torch.no_grad()
def logits_of(model: Any, processor: Phi3VProcessor, picture: Image.Image) -> torch.Tensor:
    """Logits of a prompt with a picture, and of one without."""
    model.eval()
    prompt = "<|user|>\n<|image_1|>\nWhat is this?<|end|>\n<|assistant|>\n"
    with_picture = model(**processor(prompt, [picture], return_tensors="pt")).logits
    without = model(**processor("<|user|>\nHi<|end|>\n", return_tensors="pt")).logits
    return torch.cat([with_picture, without], dim=1)


def check_table(run: Run) -> None:
    """Compare the parameters that changed with the saved table."""
    rows = {row["part"]: row for row in json.loads((run.folder / "parts.json").read_text())}
    changed = run.changed()
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter, part in own_parameters(run.model):
        assert parameter.requires_grad == (name in changed), name
        counts[part] += parameter.numel() * (name in changed)
    assert not [name for name in changed if ".original_module." in name]
    assert counts == {part: rows[part]["trainable"] for part in PARTS}
    for row in rows.values():
        assert (row["method"] == "frozen") == (row["trainable"] == 0)
