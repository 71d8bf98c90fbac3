"""The command ``phi3v card``: describe a checkpoint, and send it to the Hub if asked to."""

import argparse
import json
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from phi3v.evaluation.card import MARK, CardFacts, build_card, is_hub_id
from phi3v.evaluation.run_files import RUN_FILE, RunFiles, read_run
from phi3v.model.durable import write_text
from phi3v.model.files import ADAPTER_CONFIG, read_json
from phi3v.model.loading import base_of_adapter, is_adapter_folder, load_config
from phi3v.model.stored import check_adapter_files, check_weight_files

CARD_FILE = "README.md"
# Stands in the empty form that PEFT writes beside an adapter.
_BLANK_FORM = "[More Information Needed]"
# The checkpoint and nothing else of the folder: no training state, no paths of this machine.
_SENT = (
    *("config.json", "generation_config.json", "adapter_model.safetensors", "model*.safetensors"),
    *("model.safetensors.index.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "chat_template.*", "*_phi3_v.py", CARD_FILE),
)


def write_card(
    folder: str | Path,
    *,
    run: str | Path | None = None,
    evaluations: list[Path] | None = None,
    base_model: str | None = None,
    license: str = "mit",
    repository: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the model card of a checkpoint folder.

    Args:
        folder: Adapter, merged or fully trained folder.
        run: Output folder of the run; None takes the folder itself if it holds one.
        evaluations: Folders of ``phi3v evaluate``; None takes those of the run.
        base_model: Hub id of the base; None takes what run or adapter name.
        license: Licence of the weights.
        repository: Hub id that the folder goes to.
        overwrite: Replace a README.md that was not written by this command.

    Returns:
        The card.

    Raises:
        FileNotFoundError: The folder holds no checkpoint, or ``run`` no run.
        FileExistsError: There is a README.md of somebody else.
    """
    folder = Path(folder)
    adapter = _check_checkpoint(folder)
    known = _read_run(folder, run, evaluations or [])
    base = base_model or str(known.flags.get("model_id") or "")
    if not base and adapter:
        base = base_of_adapter(folder)
    facts = CardFacts(
        name=(repository or str(folder.resolve())).rsplit("/", 1)[-1],
        base_model=base if is_hub_id(base) else Path(base).name or "a Phi-3-vision model",
        license=license,
        is_adapter=adapter,
        repository=repository,
    )
    card = folder / CARD_FILE
    text = card.read_text(encoding="utf-8") if card.exists() else MARK
    if not overwrite and MARK not in text and _BLANK_FORM not in text:
        raise FileExistsError(f"{card} was not written by phi3v card; add --overwrite")
    write_text(card, build_card(facts, known))
    return card


def push(folder: Path, repository: str, *, base_model: str | None, private: bool) -> str:
    """Send a checkpoint with its card to the Hub.

    Args:
        folder: The checkpoint.
        repository: Hub id; made if it does not exist.
        base_model: Hub id of an adapter's base, which the sent adapter then names.
        private: Make a new repository private.

    Returns:
        Address of the repository.

    Raises:
        ValueError: An adapter names a folder of this machine, or the Hub refuses.
    """
    settings = _portable_settings(folder, base_model) if is_adapter_folder(folder) else None
    api = HfApi()
    try:
        created = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(_SENT),
            ignore_patterns=["*/*"],
            commit_message="Upload by phi3v",
        )
        if settings is not None:
            api.upload_file(
                path_or_fileobj=settings,
                path_in_repo=ADAPTER_CONFIG,
                repo_id=repository,
                commit_message="Name the base model",
            )
    except LocalTokenNotFoundError:
        raise ValueError("the Hub does not know you; run hf auth login, or set HF_TOKEN") from None
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{repository} could not be sent to the Hub: {reason}") from error
    return str(created)


def _portable_settings(folder: Path, base_model: str | None) -> bytes:
    base = base_model or base_of_adapter(folder)
    if not is_hub_id(base):
        raise ValueError(
            f"the adapter names the folder {base}, which others do not have; give the base's name "
            "on the Hub by --base_model"
        )
    settings = read_json(folder / ADAPTER_CONFIG) | {"base_model_name_or_path": base}
    return json.dumps(settings, indent=2).encode()


def _check_checkpoint(folder: Path) -> bool:
    """Check a folder's weights, and tell whether they are an adapter's."""
    if is_adapter_folder(folder):
        check_adapter_files(folder)
        return True
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkpoint folder at {folder}; name an existing folder")
    load_config(folder)
    check_weight_files(folder)
    return False


def _read_run(folder: Path, run: str | Path | None, evaluations: list[Path]) -> RunFiles:
    if run is None and not (folder / RUN_FILE).is_file():
        return RunFiles(folder, {})
    return read_run(Path(run or folder), evaluations)


def main(argv: list[str]) -> int:
    """Run ``phi3v card``."""
    parser = argparse.ArgumentParser(
        prog="phi3v card",
        description="Write the model card (README.md) of a checkpoint: parts, data, scores, "
        "licence. Nothing leaves this machine without --push_to_hub.",
    )
    parser.add_argument("folder", type=Path, help="adapter, merged or fully trained folder")
    parser.add_argument("--run", type=Path, help="output folder of phi3v train, for a merged model")
    parser.add_argument("--evaluation", type=Path, action="append", metavar="FOLDER",
                        help="folder of phi3v evaluate; default: those in the run's folder; may be "
                        "given again")  # fmt: skip
    parser.add_argument("--base_model", help="name of the base on the Hub; default: what is known")
    parser.add_argument("--license", default="mit",
                        help="licence of the weights; the published models are under mit "
                        "(%(default)s)")  # fmt: skip
    parser.add_argument("--push_to_hub", metavar="OWNER/NAME", help="send card and weights there")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.add_argument("--overwrite", action="store_true", help="replace a README.md not of ours")
    flags = parser.parse_args(argv)
    target = flags.push_to_hub
    if target is not None and not is_hub_id(target):
        raise ValueError(f"--push_to_hub is {target!r}; expected OWNER/NAME")
    if flags.private and target is None:
        raise ValueError("--private needs --push_to_hub")
    if flags.base_model is not None and not is_hub_id(flags.base_model):
        raise ValueError(f"--base_model is {flags.base_model!r}; expected OWNER/NAME on the Hub")
    if flags.evaluation and flags.run is None and not (flags.folder / RUN_FILE).is_file():
        raise ValueError("--evaluation needs --run, the folder of the run that was evaluated")
    card = write_card(
        flags.folder,
        run=flags.run,
        evaluations=flags.evaluation,
        base_model=flags.base_model,
        license=flags.license,
        repository=target,
        overwrite=flags.overwrite,
    )
    print(f"wrote {card}")
    if target is not None:
        print(push(flags.folder, target, base_model=flags.base_model, private=flags.private))
    return 0
