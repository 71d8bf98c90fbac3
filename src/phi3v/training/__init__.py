"""From arguments to an output folder: training and merging."""

import importlib.util
import os


def _import_bitsandbytes() -> None:
    """Import bitsandbytes, which the libraries below import anyway, without PyTorch's compiler.

    It asks to compile a few of its reference operations when it is imported, which loads the
    compiler: a second of every start. They serve plain on devices without its own kernels.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        import bitsandbytes  # noqa: F401
    finally:
        if before is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = before


_import_bitsandbytes()
