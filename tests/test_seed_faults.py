"""Every fault found in the seed project, and the tests that show that it is not here.

The numbers are those of the survey that found them.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent

FAULTS = {
    1: (
        "LoRA freezes vision tower and projector whatever the flags say",
        "training/test_modes.py::test_lora_freezes_neither_vision_tower_nor_projection",
    ),
    2: (
        "the DoRA flag does nothing",
        "training/test_adapters.py::test_dora_trains_magnitudes",
    ),
    3: (
        "training texts have a BOS too many",
        "data/test_encoding.py::test_fault_3_a_bos_stands_once_at_the_start_and_once_behind_every_image",
    ),
    4: (
        "a system turn shifts the roles",
        "data/test_encoding.py::test_fault_4_answers_stay_answers_behind_a_system_turn",
    ),
    5: (
        "vision adapters get gradients by accident",
        "training/test_adapters.py::test_vision_adapters_learn_without_one_on_the_positions",
    ),
    6: (
        "text-only batches do not reach the vision side in backward",
        "training/test_distributed.py::test_losses_of_two_processes_are_those_of_one",
    ),
    7: (
        "rotary factors depend on the neighbours in the batch",
        "model/test_documents.py::test_padded_row_equals_the_row_alone",
    ),
    8: (
        "num_crops is lost on merge",
        "training/test_merge.py::test_merged_folder_holds_exactly_a_published_one",
    ),
    9: (
        "a DeepSpeed file overrides optimizer flags and learning rates",
        "training/test_distributed.py::test_blocks_of_a_deepspeed_file_give_way_to_the_flags",
    ),
    10: (
        "the head is quantised",
        "training/test_adapters.py::test_head_and_vision_side_are_never_quantised",
    ),
    11: (
        "an adapter on the token table misses image samples",
        "training/test_adapters.py::test_adapter_on_the_token_table_learns_from_image_samples",
    ),
    12: (
        "separators obey no flag",
        "training/test_modes.py::test_mode_trains_exactly_the_parts_of_its_table",
    ),
    13: (
        "the loss is a mean of means",
        "training/test_trainer.py::test_four_batches_of_one_train_as_one_batch_of_four",
    ),
    14: (
        "norms and separators decay",
        "training/test_optimizer.py::test_norms_biases_and_separators_do_not_decay",
    ),
    15: (
        "merged weights are forced to float16",
        "training/test_merge.py::test_half_precision_is_rounded_once",
    ),
    16: (
        "its chat fails on its own pins",
        "inference/test_chat.py::test_image_in_second_turn",
    ),
    17: (
        "a finished run is resumed unasked",
        "training/test_resume.py::test_a_second_start_resumes_nothing_unasked",
    ),
    18: (
        "resuming drops the fully trained parts",
        "training/test_resume.py::test_resumed_run_equals_the_unbroken_one",
    ),
    19: (
        "every rank writes, and all frozen weights too",
        "training/test_resume.py::test_checkpoints_hold_only_what_trains",
    ),
    20: (
        "no best checkpoint with LoRA",
        "training/test_trainer.py::test_best_checkpoint_is_kept_and_a_run_without_progress_stops",
    ),
    21: (
        "faulty records crash in the middle of an epoch",
        "data/test_records.py::test_fault_21_tags_that_do_not_match_the_images_are_refused",
    ),
    22: (
        "nothing is truncated",
        "data/test_truncation.py::test_fault_22_every_limit_keeps_whole_images_and_some_labels",
    ),
    23: (
        "no validation",
        "training/test_trainer.py::test_evaluation_loss_does_not_depend_on_its_batch_size",
    ),
    24: (
        "the chat fails on a video",
        "inference/test_generate.py::test_a_video_among_the_image_files",
    ),
    25: (
        "one placeholder for all frames, pictures before videos whatever the order",
        "inference/test_chat.py::test_a_video_becomes_the_images_of_its_frames",
    ),
    26: (
        "short clips fail and readers stay open",
        "data/test_media.py::test_fault_26_short_and_slow_clips_give_their_frames",
    ),
    27: (
        "merging depends on the folder's name",
        "training/test_merge.py::test_merged_folder_answers_as_base_and_adapter",
    ),
    28: (
        "local folders fall to the older class",
        "training/test_merge.py::test_the_identity_of_the_base_is_kept",
    ),
    29: (
        "QLoRA cannot start with the shipped scripts",
        "training/test_modes.py::test_mode_trains_exactly_the_parts_of_its_table",
    ),
    30: (
        "the fp8 script does nothing",
        "test_seed_faults.py::test_there_is_no_script_for_what_nothing_acts_on",
    ),
    31: (
        "saving an adapter needs DeepSpeed",
        "test_seed_faults.py::test_only_sharding_and_its_start_import_deepspeed",
    ),
    32: (
        "the tower's last layer is run and trained in vain",
        "training/test_modes.py::test_layers_that_never_run_are_frozen_and_saved",
    ),
    33: (
        "padding crops go through the tower",
        "model/test_waste.py::test_only_real_crops_reach_the_tower",
    ),
    34: (
        "logits of all places in float32",
        "model/test_waste.py::test_the_head_sees_supervised_places_only",
    ),
    35: (
        "without FlashAttention the fallback is eager",
        "training/test_flags.py::test_disabling_flash_attention_means_sdpa",
    ),
    36: (
        "no length grouping, packing or caching",
        "data/test_packing.py::test_packs_are_nearly_full",
    ),
}


def test_all_faults_are_listed() -> None:
    assert sorted(FAULTS) == list(range(1, 37))


@pytest.mark.parametrize("number", FAULTS)
def test_the_test_of_a_fault_exists(number: int) -> None:
    fault, node = FAULTS[number]
    file, name = node.split("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    names = {part.name for part in ast.walk(tree) if isinstance(part, ast.FunctionDef)}
    assert name in names, f"{fault}: {node} is gone"


def test_there_is_no_script_for_what_nothing_acts_on() -> None:
    scripts = ROOT.parent / "scripts"
    assert not [file.name for file in scripts.iterdir() if "8" in file.name]
    assert not [file.name for file in scripts.glob("*.json") if "msamp" in file.read_text()]


def test_only_sharding_and_its_start_import_deepspeed() -> None:
    importing = set()
    for file in (ROOT.parent / "src").rglob("*.py"):
        for part in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(part, ast.Import):
                modules = [alias.name for alias in part.names]
            elif isinstance(part, ast.ImportFrom):
                modules = [part.module or ""]
            if any(module.split(".")[0] == "deepspeed" for module in modules):
                importing.add(file.stem)
    assert importing <= {"processes", "sharding"}
