"""Measures what the states of every optimizer take, beside what the plan says.

    python -m benchmarks.optimizers [NAMES]

One step of full training on random gradients, by the optimizer that a run would make. States are
counted as they lie in memory: what several parameters share counts once. Numbers are bytes for each
trained number, of large matrices, of embeddings, of parameters below 4,096 numbers, and of all; the
last column is the plan's number. Optimizers that are not installed are left out.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.models import SIZES, make_model, model_config
from phi3v.training.arguments import Phi3VTrainingArguments
from phi3v.training.optimizer import (
    FEWEST,
    STATES,
    check_optimizer,
    embeddings,
    make_optimizer,
    state_bytes,
)

KINDS = ("matrices", "embeddings", "small")


def plain_tensors(state: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of a state; of a quantised one those that it is made of."""
    if isinstance(state, dict):
        for value in state.values():
            yield from plain_tensors(value)
    elif hasattr(state, "__tensor_flatten__"):
        for name in state.__tensor_flatten__()[0]:
            yield from plain_tensors(getattr(state, name))
    elif isinstance(state, torch.Tensor):
        yield state


def held_bytes(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Count the bytes of all states, by the kind of their parameter."""
    wide = {id(one) for one in embeddings(model)}
    held = dict.fromkeys(KINDS, 0)
    seen: set[int] = set()
    for parameter, state in optimizer.state.items():
        for tensor in plain_tensors(state):
            memory = tensor.untyped_storage()
            # Single numbers are left out: counts of steps, for which some have a tensor.
            if memory.data_ptr() not in seen and tensor.dim() > 0:
                seen.add(memory.data_ptr())
                held[kind_of(parameter, wide)] += memory.nbytes()
    return held


def kind_of(parameter: torch.Tensor, wide: set[int]) -> str:
    """Sort a parameter by what optimizers make a difference between."""
    if id(parameter) in wide:
        return "embeddings"
    return "small" if parameter.numel() < FEWEST else "matrices"


def step(model: torch.nn.Module, training: Phi3VTrainingArguments) -> torch.optim.Optimizer:
    """Make the optimizer of a run and let it make one step on random gradients."""
    optimizer = make_optimizer(model, training)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
    # One of them compiles its step for every shape, which changes no state.
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Paged optimizers are not supported on CPU")
        optimizer.step()
    return optimizer


def measure(name: str, size: str) -> dict[str, float]:
    """Measure an optimizer on a model of some size; bytes for each number."""
    model = make_model(model_config(SIZES[size]))
    with tempfile.TemporaryDirectory() as folder:
        training = Phi3VTrainingArguments(folder, optim=name, use_cpu=True, report_to=[])
    check_optimizer(training)
    wide = {id(one) for one in embeddings(model)}
    counts = dict.fromkeys(KINDS, 0)
    for parameter in model.parameters():
        counts[kind_of(parameter, wide)] += parameter.numel()
    held, total = held_bytes(model, step(model, training)), sum(counts.values())
    return {kind: held[kind] / counts[kind] for kind in KINDS} | {
        "all": sum(held.values()) / total,
        "plan": state_bytes(model, training) / total,
    }


def main(argv: list[str]) -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="optimizers by their --optim; default: all")
    parser.add_argument("--model", choices=SIZES, default="fm-tiny", help="size of the model")
    options = parser.parse_args(argv)
    print(f"{'--optim':<22}" + "".join(f"{name:>12}" for name in (*KINDS, "all", "plan")))
    for name in options.names or STATES:
        try:
            found = measure(name, options.model)
        except ValueError as error:
            if options.names:
                raise
            print(f"{name:<22}  needs {str(error).partition(' needs ')[2].split(',')[0]}")
            continue
        print(f"{name:<22}" + "".join(f"{value:12.3f}" for value in found.values()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
