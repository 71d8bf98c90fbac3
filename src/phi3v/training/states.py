"""What a checkpoint holds for going on: looked at before a library opens it.

Optimizer, scheduler and random numbers are pickles. DeepSpeed opens its own without any guard, so
the names in them are compared here with those that such files have; nothing is run for that.
"""

import pickletools
import re
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint
from transformers import TrainerState

from phi3v.model.config_fields import is_number
from phi3v.model.files import read_json
from phi3v.model.pickles import check_stored_plainly
from phi3v.training.checkpoints import STATE_FILE

# What stands in files of ours beside tensors and plain containers.
_KNOWN = {
    *("numpy.dtype", "numpy.ndarray", "numpy._core.multiarray._reconstruct"),
    *("numpy.core.multiarray._reconstruct", "numpy.dtypes.UInt32DType"),
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}
# Python before 3.11.4 stores a member of an enumeration as a look-up of its name.
_LOOK_UPS = [("GLOBAL", "__builtin__ getattr"), ("GLOBAL", "builtins getattr")]
_STAGES = ("disabled", "optimizer_states", "gradients", "weights")
_ENDINGS = (".pt", ".pth", ".bin")
# Written by the library and read by nobody.
_UNREAD = "training_args.bin"
_NUMBERS = (
    *("epoch", "global_step", "max_steps", "num_train_epochs", "total_flos"),
    "num_input_tokens_seen",
)


def check_states(checkpoint: str | None) -> str | None:
    """Check the files that a run goes on from, and return the checkpoint.

    Args:
        checkpoint: Checkpoint folder; None where a run starts anew.

    Raises:
        ValueError: A file is damaged, or asks for something that no checkpoint of ours holds.
    """
    if checkpoint is None:
        return None
    folder = Path(checkpoint)
    _check_trainer_state(folder / STATE_FILE)
    folders = [folder, *_deepspeed_folder(folder)]
    for file in sorted(path for one in folders for path in one.iterdir()):
        if file.suffix in _ENDINGS and file.name != _UNREAD:
            _check_pickle(file)
    if found := next(folder.glob("*/.metadata"), None):
        raise ValueError(
            f"{found.parent} is a sharded state, whose description is a bare pickle; resume from a "
            "checkpoint written with fsdp_state_dict_type FULL_STATE_DICT"
        )
    return checkpoint


def _deepspeed_folder(checkpoint: Path) -> list[Path]:
    """Find the folder that DeepSpeed reads, by the file in which it notes its name."""
    latest = checkpoint / "latest"
    if not latest.is_file():
        return []
    with latest.open("rb") as file:
        name = file.read(100).decode("utf-8", "replace").strip()
    if not re.fullmatch(r"global_step\d+", name) or not (checkpoint / name).is_dir():
        raise ValueError(
            f"{latest} names {name!r}, expected a folder global_step* beside it; resume from "
            "another checkpoint"
        )
    return [checkpoint / name]


def _check_pickle(file: Path) -> None:
    check_stored_plainly(file)
    try:
        unknown = set(get_unsafe_globals_in_checkpoint(str(file))) - _KNOWN
    # A damaged pickle ends in whatever its reader trips over.
    except Exception as error:
        raise ValueError(
            f"{file} is damaged ({type(error).__name__}: {error}); resume from another checkpoint"
        ) from error
    if unknown == {"builtins.getattr"} and _looks_up_stages_only(file):
        return
    if unknown:
        raise ValueError(
            f"{file} asks for {min(unknown)}, which is in no checkpoint of ours; it was not "
            "opened: do not trust its source, and resume from a checkpoint of your own"
        )


def _looks_up_stages_only(file: Path) -> bool:
    """Say whether the one use of ``getattr`` in a pickle is a look-up of DeepSpeed's stage.

    Every step is compared, also that the function is not taken out of the memo for more.
    """
    data = torch._C.PyTorchFileReader(str(file)).get_record("data.pkl")
    steps = [(step.name, given) for step, given, _ in pickletools.genops(data)]
    found = [at for at, step in enumerate(steps) if step in _LOOK_UPS]
    if len(found) != 1 or len(steps) < found[0] + 9:
        return False
    _, kept, enum, _, stage, _, pair, _, call = steps[found[0] : found[0] + 9]
    return (
        all("PUT" in name for name, _ in steps[found[0] + 1 : found[0] + 9 : 2])
        and enum == ("GLOBAL", "deepspeed.runtime.zero.config ZeroStageEnum")
        and (stage[0] == "BINUNICODE" and stage[1] in _STAGES)
        and (pair[0], call[0]) == ("TUPLE2", "REDUCE")
        and not any("GET" in name and number == kept[1] for name, number in steps)
    )


def _check_trainer_state(file: Path) -> None:
    fields: dict[str, Any] = read_json(file)
    try:
        state = TrainerState(**fields)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ValueError(f"{file} is no state of a run: {error}; name another one") from error
    faulty = [name for name in _NUMBERS if not is_number(getattr(state, name) or 0, above=-2)]
    if not isinstance(state.global_step, int):
        faulty.append("global_step")
    log = state.log_history
    if not isinstance(log, list) or not all(isinstance(one, dict) for one in log):
        faulty.append("log_history")
    if not isinstance(state.best_model_checkpoint, str | None):
        faulty.append("best_model_checkpoint")
    if not is_number(state.best_metric or 0):
        faulty.append("best_metric")
    if not isinstance(state.stateful_callbacks, dict):
        faulty.append("stateful_callbacks")
    if faulty:
        name = faulty[0]
        raise ValueError(
            f"{file}: {name} is {str(getattr(state, name))[:80]!r}, which no run writes; resume "
            "from another checkpoint"
        )
