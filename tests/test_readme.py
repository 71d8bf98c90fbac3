import re
from pathlib import Path

from phi3v.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def find_code() -> str:
    blocks = re.findall(r"```\w*\n(.*?)```", README, flags=re.DOTALL)
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", prose)])


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    named = set(re.findall(r"^\s*make ([a-z-]+)", find_code(), flags=re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


def test_every_command_exists() -> None:
    named = set(re.findall(r"^(?:\S*/)?phi3v ([a-z][a-z-]*)", find_code(), flags=re.MULTILINE))
    assert named and named <= set(COMMANDS)


def test_every_script_exists() -> None:
    named = set(re.findall(r"scripts/[\w.-]+", find_code()))
    missing = sorted(name for name in named if not (ROOT / name).is_file())
    assert named and not missing, f"README names {missing}"


def test_every_relative_link_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    missing = [link for link in links if not (ROOT / link).exists()]
    assert links and not missing, f"README links to {missing}"


def test_the_first_commands_are_demo_and_test() -> None:
    assert re.findall(r"^make ([a-z-]+)", find_code(), flags=re.MULTILINE)[:2] == ["demo", "test"]
