"""Make an environment with other releases of the libraries, over the packages of this one.

    python tools/version_env.py oldest|newest

What tests/constraints/NAME.txt pins goes into .venv-NAME; everything else, torch above all, is seen
through a path file in the environment whose interpreter runs this. Releases that are newer than
those of newest.txt are told, and change nothing: what is tested stands in the file.
"""

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def make(name: str) -> Path:
    """Make the environment unless it is there, and return its interpreter."""
    folder, file = ROOT / f".venv-{name}", ROOT / "tests" / "constraints" / f"{name}.txt"
    python, mark = folder / "bin" / "python", folder / "made"
    beneath = sysconfig.get_path("purelib")
    wanted = f"{beneath}\n{sys.version}\n{file.read_text(encoding='utf-8')}"
    if mark.is_file() and mark.read_text(encoding="utf-8") == wanted:
        return python
    venv.create(folder, with_pip=True, clear=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # Appended, so that the environment's own packages come first; it reads path files there too.
    line = f"import site; site.addsitedir({beneath!r})\n"
    (site / "beneath.pth").write_text(line, encoding="utf-8")
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "--no-deps", "-r", file], check=True)
    mark.write_text(wanted, encoding="utf-8")
    return python


def newer_releases(python: Path, name: str) -> list[str]:
    """List what the package index has newer than the file, as ``transformers 5.25.0``.

    Raises:
        RuntimeError: The index could not be asked.
    """
    lines = (ROOT / "tests" / "constraints" / f"{name}.txt").read_text("utf-8").splitlines()
    names = [line.split("==")[0] for line in lines if "==" in line]
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--dry-run", "--no-deps", "--upgrade", "--report", "-", *names]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError((result.stderr.strip() or "no message").splitlines()[-1])
    found = [item["metadata"] for item in json.loads(result.stdout)["install"]]
    return [f"{item['name']} {item['version']}" for item in found]


def main(argv: list[str]) -> int:
    """Make the named environment; say what it holds, and what is newer."""
    if len(argv) != 1 or argv[0] not in ("oldest", "newest"):
        print("usage: python tools/version_env.py oldest|newest", file=sys.stderr)
        return 2
    (name,) = argv
    python = make(name)
    print(f"{python.parent.parent.name} holds tests/constraints/{name}.txt")
    if name == "newest":
        try:
            newer = newer_releases(python, name)
        except RuntimeError as error:
            print(f"whether newer releases are out could not be asked: {error}")
        else:
            print(f"newer than newest.txt: {', '.join(newer) or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
