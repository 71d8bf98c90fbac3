"""Tiny checkpoints: same seed same weights, a scale that can learn, refused targets and sizes."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from phi3v import Phi3VProcessor, load_model, load_processor
from phi3v.cli import main
from phi3v.model.image_processing import Phi3VImageProcessor
from phi3v.model.tiny import tiny_config, tiny_model, write_tiny_checkpoint

SMALL = {"crop_size": 56, "hidden_size": 32, "vision_hidden_size": 32}


def test_command_writes_a_folder_that_opens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "tiny"
    arguments = ["--family", "phi3", "--crop_size", "56", "--hidden_size", "32"]
    assert main(["init-tiny", str(folder), *arguments, "--num_hidden_layers", "1"]) == 0
    assert str(folder) in capsys.readouterr().out
    model, processor = load_model(folder), load_processor(folder)
    assert (model.config.crop_size, model.config.num_hidden_layers) == (56, 1)
    assert model.config.sliding_window == 131072
    assert (processor.image_processor.num_crops, processor.image_processor.crop_size) == (16, 56)
    assert model.config.vocab_size == len(processor.tokenizer)
    assert model.config.image_token_id == processor.image_token_id


def test_tokenizer_may_be_given(tiny_folder: Path, tmp_path: Path) -> None:
    tokenizer = str(tiny_folder)
    assert main(["init-tiny", str(tmp_path / "tiny"), "--tokenizer", tokenizer]) == 0
    text = "<|user|>\nHow many?<|end|>\n"
    first, second = (load_processor(folder) for folder in (tiny_folder, tmp_path / "tiny"))
    assert first(text)["input_ids"] == second(text)["input_ids"]


@pytest.mark.parametrize("occupied_by", ["file", "folder"])
def test_occupied_target_is_refused(tmp_path: Path, occupied_by: str) -> None:
    target = tmp_path / "target"
    if occupied_by == "folder":
        target.mkdir()
    (target / "mine.txt" if occupied_by == "folder" else target).write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not empty; name a new folder"):
        write_tiny_checkpoint(target, **SMALL)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"family": "phi4"}, "family is 'phi4', expected one of"),
        ({"crop_size": 100}, "even number of 14-pixel patches"),
        ({"hidden_size": 30}, "not a multiple of num_attention_heads"),
        ({"num_crops": 17}, "num_crops is 17"),
    ],
)
def test_impossible_size_is_refused_before_anything_is_written(
    tmp_path: Path, sizes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_tiny_checkpoint(tmp_path / "tiny", **SMALL | sizes)
    assert not (tmp_path / "tiny").exists()


def test_seed_decides_the_weights_and_nothing_else_is_seeded(small_tokenizer: Any) -> None:
    config = tiny_config(small_tokenizer, **SMALL)
    states = random.getstate(), torch.get_rng_state()
    first, same, other = (tiny_model(config, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


def test_pictures_reach_the_logits_of_a_new_model(small_tokenizer: Any) -> None:
    model = tiny_model(tiny_config(small_tokenizer, **SMALL))
    processor = Phi3VProcessor(
        Phi3VImageProcessor(num_crops=1, crop_size=56, patch_size=14), small_tokenizer
    )
    answers = []
    for shade in (0, 255):
        picture = Image.new("L", (56, 56), shade)
        with torch.no_grad():
            logits = model(**processor("<|image_1|>What?", picture, return_tensors="pt")).logits
        answers.append(logits[0, -1])
    assert (answers[0] - answers[1]).abs().mean() > 0.01


@pytest.mark.slow
def test_tiny_model_learns_four_pictures(small_tokenizer: Any) -> None:
    model = tiny_model(tiny_config(small_tokenizer, crop_size=56)).train()
    processor = Phi3VProcessor(
        Phi3VImageProcessor(num_crops=1, crop_size=56, patch_size=14), small_tokenizer
    )
    noise = np.random.default_rng(0).integers(0, 256, (4, 56, 56, 3), dtype=np.uint8)
    texts = [f"<|user|>\n<|image_1|>\nWhich?<|end|>\n<|assistant|>\n{n}<|end|>" for n in range(4)]
    pictures = [[Image.fromarray(pixels)] for pixels in noise]
    batch = processor(texts, pictures, padding=True, return_tensors="pt")
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, -3:] = batch["input_ids"][:, -3:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(60):
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    prompts = processor(
        [text[: text.rindex("\n") + 1] for text in texts],
        pictures,
        padding=True,
        return_tensors="pt",
    )
    ids = model.eval().generate(**prompts, do_sample=False, max_new_tokens=4)
    answers = processor.tokenizer.batch_decode(
        ids[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True
    )
    assert answers == ["0", "1", "2", "3"]
