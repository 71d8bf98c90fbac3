import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def by_name(lines: list[str]) -> dict[str, Requirement]:
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def read_pins(file_name: str) -> dict[str, Requirement]:
    lines = (ROOT / file_name).read_text(encoding="utf-8").splitlines()
    return by_name([line for line in lines if line and not line.startswith("#")])


CORE = by_name(PROJECT["dependencies"])
BESIDE = by_name([line for name, lines in EXTRAS.items() if name != "dev" for line in lines])
PINNED_FILES = [
    ("requirements.txt", CORE),
    ("requirements-extras.txt", BESIDE),
    ("requirements-dev.txt", by_name(EXTRAS["dev"])),
]


@pytest.mark.parametrize(("file_name", "declared"), PINNED_FILES)
def test_pins_satisfy_the_ranges(file_name: str, declared: dict[str, Requirement]) -> None:
    for name, pin in read_pins(file_name).items():
        (specifier,) = pin.specifier
        assert specifier.operator == "==", f"{file_name}: {pin} is not pinned"
        assert name in declared, f"{file_name}: {name} is not declared in pyproject.toml"
        assert declared[name].specifier.contains(specifier.version), f"{pin}, {declared[name]}"


def test_every_core_dependency_is_pinned() -> None:
    assert set(CORE) <= set(read_pins("requirements.txt"))


def test_the_oldest_releases_tested_are_the_lower_bounds() -> None:
    oldest = read_pins("tests/constraints/oldest.txt")
    # Another torch would be another download of gigabytes.
    for name in CORE.keys() - {"torch"}:
        (bound,) = [each for each in CORE[name].specifier if each.operator == ">="]
        (pin,) = oldest[name].specifier
        assert Version(bound.version) == Version(pin.version), f"{CORE[name]}, {oldest[name]}"


def test_the_newest_releases_tested_are_those_of_the_pins_or_newer() -> None:
    newest = read_pins("tests/constraints/newest.txt")
    for name, pin in read_pins("requirements.txt").items():
        if name != "torch":
            (tested,), (pinned,) = newest[name].specifier, pin.specifier
            assert Version(tested.version) >= Version(pinned.version), f"{newest[name]}, {pin}"
            assert CORE[name].specifier.contains(tested.version), f"{newest[name]}, {CORE[name]}"


def test_the_readme_names_the_releases_tested() -> None:
    files = ("tests/constraints/oldest.txt", "requirements.txt", "tests/constraints/newest.txt")
    columns = [read_pins(file) for file in files]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in CORE.keys() - {"torch"}:
        versions = [str(pins[name].specifier).removeprefix("==") for pins in columns]
        assert f"| {' | '.join([name, *versions])} |" in readme, f"{name}: {versions}"


def test_every_tool_is_pinned() -> None:
    assert set(by_name(EXTRAS["dev"])) == set(read_pins("requirements-dev.txt"))


def test_direct_dependencies_are_a_dozen_at_most() -> None:
    assert len(CORE) <= 12


def test_flash_attention_is_never_required() -> None:
    assert "flash-attn" not in CORE | read_pins("requirements-extras.txt")


def test_conda_environment_installs_the_same_pins() -> None:
    environment = yaml.safe_load((ROOT / "environment.yaml").read_text(encoding="utf-8"))
    assert environment["name"] == "phi3v"
    assert environment["dependencies"] == [
        "python=3.11",
        "pip",
        {"pip": ["-r requirements.txt", "-r requirements-extras.txt"]},
    ]


def test_no_source_file_is_longer_than_250_lines() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    long = {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > 250}
    assert not long, f"split by meaning: {long}"
