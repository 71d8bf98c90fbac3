"""YAML files of arguments: read with flags over them, written so that they repeat the run."""

from pathlib import Path

import pytest

from phi3v.training.flags import as_yaml, parse_arguments


def test_flag_wins_over_the_yaml_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "model_id: m\ndata_path: d.json\nlora_rank: 8\nlora_enable: true\nlearning_rate: 1e-4\n"
        "lora_namespan_exclude: [lm_head, embed_tokens]\nreport_to: [tensorboard]\n"
        "lr_scheduler_kwargs: {num_cycles: 2}\nimage_folder: null\nwarmup_ratio: 0.1\n"
        "use_cpu: true\n"
    )
    arguments, messages = parse_arguments([str(file), "--lora_rank", "4"])
    assert arguments.lora.lora_rank == 4
    assert arguments.lora.lora_enable is True
    assert arguments.training.learning_rate == 1e-4
    assert arguments.lora.lora_namespan_exclude == "['lm_head', 'embed_tokens']"
    assert arguments.training.lr_scheduler_kwargs == {"num_cycles": 2}
    assert arguments.training.warmup_steps == 0.1
    assert len(messages) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a\n", "must hold a mapping"), ("a: [", "not readable as YAML")],
)
def test_bad_yaml_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        parse_arguments([str(file)])


def test_missing_yaml_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.yaml"):
        parse_arguments(["no.yaml"])


def test_arguments_survive_the_way_through_yaml(tmp_path: Path) -> None:
    words = [
        *("--model_id", "m", "--data_path", "d.json", "--use_cpu"),
        *("--lora_enable", "--tune_img_projector", "False", "--num_lora_modules", "-1"),
        *("--report_to", "none", "--dataloader_num_workers", "0", "--lora_preset", "mlp"),
        *("--lr_scheduler_kwargs", '{"num_cycles": 2}', "--eval_strategy", "no"),
        *("--lora_namespan_exclude", "['lm_head']", "--vision_lr", "2e-6"),
    ]
    before, _ = parse_arguments([*words, "--resume_from_checkpoint", "true"])
    file = tmp_path / "run.yaml"
    file.write_text(as_yaml(before))
    after, _ = parse_arguments([str(file)])
    assert after[:3] == before[:3]
    for name in ("report_to", "dataloader_num_workers", "lr_scheduler_kwargs", "vision_lr"):
        assert getattr(after.training, name) == getattr(before.training, name)
    assert after.training.resume_from_checkpoint is None
