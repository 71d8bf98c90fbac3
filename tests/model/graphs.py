"""Stands for a compiler, so that tests see what would be compiled."""

from typing import Any

import torch
from transformers import CompileConfig

graphs: list[torch.fx.GraphModule] = []


def note_graph(graph: torch.fx.GraphModule, inputs: Any) -> Any:
    """Stand for a compiler: note what would be compiled, and run it as it is."""
    graphs.append(graph)
    return graph.forward


def compiling(backend: Any, *, fullgraph: bool = True) -> CompileConfig:
    config = CompileConfig(backend=backend, fullgraph=fullgraph, mode=None)  # type: ignore[arg-type]
    # As on a GPU.
    config._compile_all_devices = True  # type: ignore[assignment]
    return config
