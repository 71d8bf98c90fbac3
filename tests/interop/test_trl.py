"""TRL's SFTTrainer trains our model with our processor, and what it saves is ours again."""

import json
from pathlib import Path

import pytest
import torch
from tests.interop.conftest import Foreign

from phi3v import load_model, load_processor

pytestmark = pytest.mark.interop


def test_it_trains_on_pictures(foreign: Foreign, tiny_folder: Path, tmp_path: Path) -> None:
    output = foreign("trl", "trl_trainer.py", tiny_folder, tmp_path / "trained")
    losses = json.loads(output.splitlines()[-1])["losses"]
    assert len(losses) == 8 and losses[-1] < 0.7 * losses[0]
    before, after = load_model(tiny_folder), load_model(tmp_path / "trained")
    assert load_processor(tmp_path / "trained").image_token_id == before.config.image_token_id
    # Pictures took part: the projection and the tower moved.
    for name in ("img_projection.0.weight", "sub_GN"):
        full = f"model.vision_embed_tokens.{name}"
        assert not torch.equal(before.state_dict()[full], after.state_dict()[full])
