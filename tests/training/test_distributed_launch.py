"""The launchers: deepspeed, torchrun, accelerate, two hosts under Slurm; and how errors end."""

import json
import os
from pathlib import Path

import pytest
import yaml
from tests.training.launching import (
    ACCELERATE,
    DEEPSPEED,
    ROOT,
    TORCHRUN,
    compile_deepspeed_op,
    launch,
    write_mixed_data,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

TWO = ["--standalone", "--nproc-per-node", "2"]


@pytest.fixture
def words(base_folder: Path, tmp_path: Path) -> list[str]:
    """Flags of a run of one step, without output folder."""
    data = write_mixed_data(tmp_path)
    return [
        *("--model_id", str(base_folder), "--data_path", str(data)),
        *("--image_folder", str(tmp_path), "--num_crops", "2", "--max_num_frames", "2"),
        *("--dataloader_num_workers", "0", "--report_to", "none", "--disable_tqdm", "True"),
        *("--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "1"),
        *("--max_steps", "1", "--save_strategy", "no"),
    ]


def check_finished(folder: Path, output: str) -> None:
    assert (folder / "model.safetensors").is_file() and (folder / "run.yaml").is_file()
    assert output.count("next             phi3v generate") == 1
    state = json.loads((folder / "trainer_state.json").read_text())
    # Two processes have one batch of eight records each.
    assert state["epoch"] == pytest.approx(1 / 4)


def test_deepspeed_launcher_shards_by_the_documented_default(
    words: list[str], tmp_path: Path
) -> None:
    compile_deepspeed_op()
    out = tmp_path / "out"
    command = [*DEEPSPEED, "--num_gpus", "2", "--module", "phi3v.training.train"]
    saving = ["--save_strategy", "steps", "--save_steps", "1", "--output_dir", str(out)]
    output = launch([*command, *words, *saving], 150, cwd=tmp_path)
    check_finished(out, output)
    assert "no GPU found: training on the CPU, processes: 2" in output
    assert len(list(out.glob("checkpoint-1/global_step1/*_optim_states.pt"))) == 2
    assert "local_rank" not in yaml.safe_load((out / "run.yaml").read_text())


def test_torchrun_starts_the_package_command(words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*TORCHRUN, *TWO, "-m", "phi3v", "train"]
    check_finished(out, launch([*command, *words, "--output_dir", str(out)], 100, cwd=tmp_path))


def test_no_model_holds_the_process_group_at_the_end(words: list[str], tmp_path: Path) -> None:
    command = [*TORCHRUN, *TWO, str(Path(__file__).with_name("leaving_worker.py"))]
    output = launch([*command, *words, "--output_dir", str(tmp_path / "out")], 100, cwd=tmp_path)
    assert output.count("models that hold the group: 0") == 2, output


def test_accelerate_launch_starts_the_module(words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*ACCELERATE, "--multi_gpu", "--num_processes", "2", "-m", "phi3v.training.train"]
    check_finished(out, launch([*command, *words, "--output_dir", str(out)], 100, cwd=tmp_path))


def test_slurm_script_lets_two_hosts_meet(words: list[str], tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    # Two agents on this machine stand for two hosts; each starts one process.
    for name, body in {
        "srun": 'shift; "$@" & one=$!; "$@" & two=$!; wait $one && wait $two',
        "scontrol": "echo 127.0.0.1",
    }.items():
        (tools / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tools / name).chmod(0o755)
    out = tmp_path / "out"
    command = ["bash", str(ROOT / "scripts/slurm.sh"), str(ROOT / "scripts/finetune.sh")]
    output = launch(
        [*command, *words, "--bf16", "False", "--output_dir", str(out)],
        150,
        cwd=tmp_path,
        SLURM_JOB_NODELIST="two",
        SLURM_NNODES="2",
        SLURM_JOB_ID=str(os.getpid()),
        NUM_PROCESSES="1",
        PATH=f"{tools}{os.pathsep}{Path(TORCHRUN[0]).parent}{os.pathsep}{os.environ['PATH']}",
    )
    check_finished(out, output)


def test_error_of_the_user_ends_in_one_line(words: list[str], tmp_path: Path) -> None:
    command = [*TORCHRUN, *TWO, "-m", "phi3v.training.train", *words]
    absent = ["--data_path", str(tmp_path / "absent.json"), "--output_dir", str(tmp_path / "out")]
    output = launch([*command, *absent], 100, status=None)
    assert output.count("absent.json") == 1
    assert output.count("phi3v train: error:") == 1
    assert "[rank" not in output


def test_folder_in_use_is_refused_by_all_processes(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    command = [*TORCHRUN, *TWO, "-m", "phi3v", "train", *words]
    output = launch([*command, "--output_dir", str(tmp_path / "out")], 100, status=None)
    assert output.count("phi3v train: error:") == 1 and "is not empty" in output
    assert os.listdir(tmp_path / "out") == ["mine.txt"]


def test_error_of_one_process_in_a_step_ends_all(words: list[str], tmp_path: Path) -> None:
    data = tmp_path / "mixed.json"
    records = json.loads(data.read_text())
    # The second process reads it in its second step.
    records[3] |= {"image": "absent.png", "conversations": records[1]["conversations"]}
    data.write_text(json.dumps(records))
    more = ["--check_data", "False", "--train_sampling_strategy", "sequential", "--max_steps", "4"]
    command = [*TORCHRUN, *TWO, "-m", "phi3v.training.train", *words, *more, "--use_cpu", "True"]
    output = launch([*command, "--output_dir", str(tmp_path / "out")], 200, status=None)
    assert output.count("phi3v train: error: ") == 1 and "absent.png" in output
    assert "exitcode  : 2 " in output
