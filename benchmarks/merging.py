"""Merging against copying: CPU and wall time in turn, and peak private memory; prints JSON.

Shards hold tensors of the published shapes, only fewer layers. Each merge is a process of its own;
both write through to the disk.

    python -m benchmarks.merging --megabytes 1200
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.step import memory_mb
from phi3v.model.tiny import write_tiny_checkpoint

_HIDDEN, _INNER, _VOCABULARY, _RANK = 3072, 8192, 32064, 16
# Seconds before each measurement.
_PAUSE = 10
_LINEARS = {
    "self_attn.qkv_proj": (3 * _HIDDEN, _HIDDEN),
    "self_attn.o_proj": (_HIDDEN, _HIDDEN),
    "mlp.gate_up_proj": (2 * _INNER, _HIDDEN),
    "mlp.down_proj": (_HIDDEN, _INNER),
}


def write_folders(folder: Path, megabytes: int) -> tuple[Path, Path, int]:
    """Write a base of about so many units of 1e6 bytes, and an adapter of all its products.

    Returns:
        Base folder, adapter folder, bytes of the base's weights.
    """
    base, adapter = folder / "base", folder / "adapter"
    write_tiny_checkpoint(base, crop_size=56)
    for stale in [*base.glob("model*"), base / "manifest.json"]:
        stale.unlink(missing_ok=True)
    tables = {} if megabytes < 600 else {"model.embed_tokens": (_VOCABULARY, _HIDDEN)}
    layer_bytes = 2 * sum(rows * columns for rows, columns in _LINEARS.values())
    shards = [tables] if tables else []
    for layer in range(max(int(megabytes * 1e6 / layer_bytes), 1)):
        names = _LINEARS if megabytes >= 200 else {"self_attn.o_proj": (_HIDDEN, _HIDDEN)}
        shards.append({f"model.layers.{layer}.{name}": shape for name, shape in names.items()})
    weights: dict[str, str] = {}
    adapted: dict[str, torch.Tensor] = {}
    for number, shapes in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        tensors = {}
        for name, (rows, columns) in shapes.items():
            tensors[f"{name}.weight"] = torch.randn(rows, columns, dtype=torch.bfloat16)
            down, up = ("A", "B") if "layers" in name else ("embedding_A", "embedding_B")
            sizes = (columns, rows) if "layers" in name else (rows, columns)
            prefix = f"base_model.model.{name}.lora_"
            ending = ".weight" if "layers" in name else ""
            adapted[f"{prefix}{down}{ending}"] = torch.randn(_RANK, sizes[0]) * 0.02
            adapted[f"{prefix}{up}{ending}"] = torch.randn(sizes[1], _RANK) * 0.02
        save_file(tensors, base / file, metadata={"format": "pt"})
        weights |= dict.fromkeys(tensors, file)
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    adapter.mkdir()
    save_file(adapted, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": _RANK, "lora_alpha": 2 * _RANK}
    settings |= {"base_model_name_or_path": str(base), "target_modules": ["qkv_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    return base, adapter, sum(file.stat().st_size for file in base.glob("model-*"))


def merge_once(adapter: Path, target: Path) -> dict[str, float]:
    """Merge in this process; CPU and wall seconds, and peak private memory (1e6 bytes)."""
    from phi3v.training.merge import merge

    torch.set_num_threads(1)
    peak, done = [memory_mb("RssAnon")], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak.append(memory_mb("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    cpu, wall = time.process_time(), time.perf_counter()
    merge(adapter, target)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    done.set()
    watcher.join()
    return {"cpu_s": cpu, "wall_s": wall, "private_mb": max(peak), "before_mb": peak[0]}


def copy_once(base: Path, target: Path) -> dict[str, float]:
    """Copy the weights by the system's own program, and write them through."""
    target.mkdir()
    before, wall = os.times(), time.perf_counter()
    files = [str(file) for file in base.glob("model-*")]
    subprocess.run(["cp", *files, str(target)], check=True)
    subprocess.run(["sync", *(str(file) for file in target.iterdir())], check=True)
    after, wall = os.times(), time.perf_counter() - wall
    used = after.children_user + after.children_system
    return {"cpu_s": used - before.children_user - before.children_system, "wall_s": wall}


def is_identical(base: Path, adapter: Path, merged: Path) -> bool:
    """Compare with merging each weight in memory in float32 and rounding once."""
    stored = load_file(adapter / "adapter_model.safetensors")
    for file in sorted(base.glob("model-*.safetensors")):
        found = load_file(merged / file.name)
        for name, weight in load_file(file).items():
            prefix = f"base_model.model.{name.removesuffix('.weight')}.lora_"
            if f"{prefix}A.weight" in stored:
                product = stored[f"{prefix}B.weight"] @ stored[f"{prefix}A.weight"]
            else:
                product = (stored[f"{prefix}embedding_B"] @ stored[f"{prefix}embedding_A"]).T
            whole = (weight.float() + 2.0 * product).to(weight.dtype)
            if not torch.equal(whole, found[name]):
                return False
    return True


def compare(folder: Path, megabytes: int, rounds: int) -> dict[str, Any]:
    """Merge and copy in turn, each into the same free memory.

    A machine may take a while to give its free memory back; who comes first would find it there.
    """
    base, adapter, size = write_folders(folder, megabytes)
    # The disk is still busy with them.
    os.sync()
    merges, copies, target = [], [], folder / "written"
    for turn in range(rounds):
        time.sleep(_PAUSE)
        words = ["--once", str(adapter), str(target)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.merging", *words],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).resolve().parent.parent,
        )
        merges.append(json.loads(done.stdout))
        identical = turn > 0 or is_identical(base, adapter, target)
        assert identical, "merged weights differ from merging in memory"
        shutil.rmtree(target)
        time.sleep(_PAUSE)
        copies.append(copy_once(base, target))
        shutil.rmtree(target)
    middle = {
        field: [statistics.median(one[field] for one in runs) for runs in (merges, copies)]
        for field in ("cpu_s", "wall_s")
    }
    return {
        "megabytes": size / 1e6,
        "merge_cpu_s": middle["cpu_s"][0],
        "copy_cpu_s": middle["cpu_s"][1],
        "cpu_ratio": middle["cpu_s"][0] / max(middle["cpu_s"][1], 0.01),
        "wall_ratio": middle["wall_s"][0] / middle["wall_s"][1],
        "private_mb": max(one["private_mb"] for one in merges),
        "private_mb_before": max(one["before_mb"] for one in merges),
        "bit_identical": True,
    }


def main(argv: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1200, help="of the base's weights, about")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", nargs=2, metavar=("ADAPTER", "TARGET"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.once:
        print(json.dumps(merge_once(*(Path(one).resolve() for one in options.once))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(compare(Path(folder), options.megabytes, options.rounds)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
