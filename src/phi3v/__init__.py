"""Fine-tune, merge and run Phi-3-vision and Phi-3.5-vision.

Importing this package registers its classes with the Auto classes of transformers, so that
``AutoModelForCausalLM.from_pretrained`` opens a published checkpoint without remote code. The
public names below are loaded on first use.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phi3v.model.configuration import Phi3VConfig
    from phi3v.model.image_processing import Phi3VImageProcessor
    from phi3v.model.loading import load_model, load_processor
    from phi3v.model.modeling import Phi3VForCausalLM
    from phi3v.model.processing import Phi3VProcessor

__version__ = "0.1.0"

__all__ = [
    "Phi3VConfig",
    "Phi3VForCausalLM",
    "Phi3VImageProcessor",
    "Phi3VProcessor",
    "__version__",
    "load_model",
    "load_processor",
]

_HOMES = {
    "Phi3VConfig": "phi3v.model.configuration",
    "Phi3VForCausalLM": "phi3v.model.modeling",
    "Phi3VImageProcessor": "phi3v.model.image_processing",
    "Phi3VProcessor": "phi3v.model.processing",
    "load_model": "phi3v.model.loading",
    "load_processor": "phi3v.model.loading",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _runs_command(command_line: list[str]) -> bool:
    """Tell whether the interpreter was started as ``phi3v ...`` or ``python -m phi3v...``."""
    for place, word in enumerate(command_line[1:], start=1):
        if word == "-m":
            return command_line[place + 1].split(".")[0] == __name__
        if not word.startswith("-"):
            return Path(word).stem == __name__
    return False


# The registration needs transformers, which takes seconds to import. A program that imports phi3v
# wants it at once; the command must answer --help in no time, and its rooms import phi3v.model
# anyway. orig_argv is read because sys.argv is not filled in yet while `python -m` looks us up.
if not _runs_command(sys.orig_argv):
    import_module("phi3v.model")
