"""`phi3v train` that keeps something of every step: memory, open files, a thread."""

import sys
import threading
from typing import Any

from phi3v import cli
from phi3v.training.trainer import Phi3VTrainer

kept: list[Any] = []
step = Phi3VTrainer.training_step


def leaking_step(self: Phi3VTrainer, *words: Any) -> Any:
    kept.append(bytearray(b"1") * 2_000_000)
    kept.extend(open(__file__, encoding="utf-8") for _ in range(10))
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    return step(self, *words)


if __name__ == "__main__":
    Phi3VTrainer.training_step = leaking_step  # type: ignore[method-assign]  # on purpose
    sys.exit(cli.main(["train", *sys.argv[1:]]))
