"""Merging: what PEFT computes in memory comes out of the stream, rounded once."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.training.conftest import logits_of

from phi3v import load_model, load_processor
from phi3v.model.saving import save_checkpoint
from phi3v.training.adapters import save_adapter
from phi3v.training.merge import main, merge, verify
from phi3v.training.rewriting import rewrite_weights

TARGETS = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
KINDS = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "tables": {"target_modules": [*TARGETS, "embed_tokens", "lm_head"]},
    "biases": {"target_modules": [*TARGETS, "q_proj", "fc1"], "bias": "lora_only"},
    "vision": {"modules_to_save": ["vision_embed_tokens"]},
    "projection": {"modules_to_save": ["img_projection"]},
    "PiSSA": {"init_lora_weights": "pissa"},
    "patterns": {"rank_pattern": {"o_proj": 2}},
}


def write_adapter(base: Path, folder: Path, **options) -> PeftModel:
    """Wrap the base, move every trainable weight at random, and save adapter and processor."""
    torch.manual_seed(1)
    config = {"r": 4, "lora_alpha": 6, "target_modules": TARGETS, "task_type": "CAUSAL_LM"}
    model = get_peft_model(load_model(base), LoraConfig(**config | options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    save_adapter(model, folder)
    load_processor(base, num_crops=2).save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def half_base(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base in bfloat16 and in several shards."""
    folder = tmp_path_factory.mktemp("half") / "base"
    model = load_model(base_folder).to(torch.bfloat16)
    load_processor(base_folder).save_pretrained(folder)
    model.save_pretrained(folder, max_shard_size="100KB")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_stream_equals_merging_in_memory(base_folder: Path, tmp_path: Path, kind: str) -> None:
    model = write_adapter(base_folder, tmp_path / "adapter", **KINDS[kind])
    merged = load_file(merge(tmp_path / "adapter", tmp_path / "merged") / "model.safetensors")
    expected = model.merge_and_unload().state_dict()
    assert merged.keys() == expected.keys()
    for name, value in merged.items():
        torch.testing.assert_close(value, expected[name], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["LoRA", "DoRA", "rsLoRA", "tables", "biases", "vision"])
def test_half_precision_is_rounded_once(half_base: Path, tmp_path: Path, kind: str) -> None:
    write_adapter(half_base, tmp_path / "adapter", **KINDS[kind])
    target = merge(tmp_path / "adapter", tmp_path / "merged")
    wide = PeftModel.from_pretrained(
        load_model(half_base, dtype=torch.float32), tmp_path / "adapter"
    )
    expected = wide.merge_and_unload().state_dict()
    shards = sorted(target.glob("model-*.safetensors"))
    assert [shard.name for shard in shards] == [
        shard.name for shard in sorted(half_base.glob("model-*.safetensors"))
    ]
    assert len(shards) > 2
    for shard in shards:
        for name, value in load_file(shard).items():
            assert value.dtype == torch.bfloat16
            assert torch.equal(value, expected[name].to(torch.bfloat16)), name


def test_blocks_are_alike(tmp_path: Path) -> None:
    source, target, seen = tmp_path / "a.safetensors", tmp_path / "b.safetensors", []
    save_file({"weight": torch.arange(84.0).view(21, 4)}, source)

    def negate(rows: slice, block: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
        seen.append(rows.stop - rows.start)
        return -block

    rewrite_weights(source, target, lambda name, shape: negate, block_bytes=10 * 16)
    assert sorted(seen) == [7, 7, 7]
    assert torch.equal(load_file(target)["weight"], -load_file(source)["weight"])


def test_merged_folder_answers_as_base_and_adapter(
    base_folder: Path, tmp_path: Path, picture: Image.Image
) -> None:
    model = write_adapter(base_folder, tmp_path / "adapter", **KINDS["vision"])
    target = merge(tmp_path / "adapter", tmp_path / "any name")
    processor = load_processor(target)
    torch.testing.assert_close(
        logits_of(load_model(target), processor, picture),
        logits_of(model, processor, picture),
        atol=2e-5,
        rtol=1e-5,
    )
    assert verify(tmp_path / "adapter", target) < 1e-4


def test_merged_folder_holds_exactly_a_published_one(base_folder: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(base_folder, base)
    (base / "modeling_phi3_v.py").write_text("raise RuntimeError('never run')\n")
    write_adapter(base, tmp_path / "adapter")
    target = merge(tmp_path / "adapter", tmp_path / "merged")
    assert sorted(path.name for path in target.iterdir()) == [
        *(
            "config.json",
            "generation_config.json",
            "manifest.json",
            "model.safetensors",
            "modeling_phi3_v.py",
        ),
        *("preprocessor_config.json", "special_tokens_map.json", "tokenizer.json"),
        "tokenizer_config.json",
    ]
    assert json.loads((target / "preprocessor_config.json").read_text())["num_crops"] == 2
    assert (target / "modeling_phi3_v.py").read_text() == "raise RuntimeError('never run')\n"


def test_a_merge_of_a_merge_works(base_folder: Path, tmp_path: Path) -> None:
    write_adapter(base_folder, tmp_path / "first")
    once = merge(tmp_path / "first", tmp_path / "once")
    model = write_adapter(once, tmp_path / "second")
    twice = merge(tmp_path / "second", tmp_path / "twice")
    expected = model.merge_and_unload().state_dict()
    for name, value in load_file(twice / "model.safetensors").items():
        torch.testing.assert_close(value, expected[name], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("checkpoint", ["p3", "p35"])
def test_the_identity_of_the_base_is_kept(golden: Path, tmp_path: Path, checkpoint: str) -> None:
    base = tmp_path / "base"
    shutil.copytree(golden / "checkpoints" / checkpoint, base)
    import gzip

    with gzip.open(golden / "tokenizer" / "tokenizer.json.gz") as file:
        (base / "tokenizer.json").write_bytes(file.read())
    write_adapter(base, tmp_path / "adapter")
    target = merge(tmp_path / "adapter", tmp_path / "merged")
    before, after = (json.loads((f / "config.json").read_text()) for f in (base, target))
    for fields in (before, after):
        fields.pop("auto_map")
    assert after == before


def seed_folder(base: Path, folder: Path, *, everything: bool) -> PeftModel:
    """Write an adapter as the seed project does, with its pickle of other weights."""
    model = write_adapter(base, folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "img_projection" in name or "vision_model" in name:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    others = {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if "lora_" not in name and (everything or "vision" in name)
    }
    if everything:
        table = model.get_base_model().model.embed_tokens.weight.detach().clone()
        others["base_model.model.model.vision_embed_tokens.wte.weight"] = table
    torch.save(others, folder / "non_lora_state_dict.bin")
    return model


@pytest.mark.parametrize("everything", [False, True], ids=["trained parts", "all other weights"])
def test_an_adapter_folder_of_the_seed_is_merged_and_loaded(
    base_folder: Path, tmp_path: Path, picture: Image.Image, everything: bool
) -> None:
    model = seed_folder(base_folder, tmp_path / "seed", everything=everything)
    processor = load_processor(tmp_path / "seed")
    expected = logits_of(model, processor, picture)
    target = merge(tmp_path / "seed", tmp_path / "merged")
    for folder in (tmp_path / "seed", target):
        found = logits_of(load_model(folder), processor, picture)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


class Harm:
    def __reduce__(self):
        return (Path.touch, (Path("harmed"),))


def test_a_pickle_with_code_is_not_run(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_adapter(base_folder, tmp_path / "seed")
    (tmp_path / "seed" / "non_lora_state_dict.bin").write_bytes(pickle.dumps(Harm()))
    for open_it in (
        lambda: merge(tmp_path / "seed", tmp_path / "out"),
        lambda: load_model(tmp_path / "seed"),
    ):
        with pytest.raises(ValueError, match=r"non_lora_state_dict\.bin .*only tensors"):
            open_it()
    assert not (tmp_path / "harmed").exists()


def test_mistakes_are_named_and_leave_nothing_behind(base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="whole model: there is nothing to merge"):
        merge(base_folder, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="holds no adapter"):
        merge(tmp_path, tmp_path / "out")
    write_adapter(base_folder, tmp_path / "adapter")
    with pytest.raises(FileNotFoundError, match="--model-base"):
        merge(tmp_path / "adapter", tmp_path / "out", base=tmp_path / "gone")
    (tmp_path / "taken").mkdir()
    with pytest.raises(FileExistsError, match="--overwrite"):
        merge(tmp_path / "adapter", tmp_path / "taken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "taken"]


def test_another_base_is_refused(base_folder: Path, tiny_folder: Path, tmp_path: Path) -> None:
    write_adapter(base_folder, tmp_path / "adapter")
    with pytest.raises(ValueError, match="another base model"):
        merge(tmp_path / "adapter", tmp_path / "out", base=tiny_folder)
    assert not list(tmp_path.glob("out*"))


def test_the_command_takes_the_flags_of_the_seed(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_adapter(base_folder, tmp_path / "adapter")
    flags = ["--model-path", str(tmp_path / "adapter"), "--model-base", str(base_folder)]
    target = str(tmp_path / "merged")
    assert main([*flags, "--save-model-path", target, "--safe-serialization", "--verify"]) == 0
    assert "verified: logits differ by at most" in capsys.readouterr().out


def test_verify_notices_a_wrong_weight(base_folder: Path, tmp_path: Path) -> None:
    write_adapter(base_folder, tmp_path / "adapter")
    target = merge(tmp_path / "adapter", tmp_path / "merged")
    model = load_model(target)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    save_checkpoint(model, None, target)
    with pytest.raises(ValueError, match="do not use it"):
        verify(tmp_path / "adapter", target)


def test_base_of_the_hub_is_taken_from_the_cache(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adapter(base_folder, tmp_path / "adapter")
    monkeypatch.setattr(
        "phi3v.training.merge.snapshot_download", lambda name, **options: str(base_folder)
    )
    merge(tmp_path / "adapter", tmp_path / "merged", base="owner/model")
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_base_that_cannot_be_had_is_named(base_folder: Path, tmp_path: Path) -> None:
    write_adapter(base_folder, tmp_path / "adapter")
    with pytest.raises(FileNotFoundError, match="owner/model is not here .*--model-base"):
        merge(tmp_path / "adapter", tmp_path / "merged", base="owner/model")
