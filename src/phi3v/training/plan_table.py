"""The table of ``phi3v plan``, for a terminal of 80 columns."""

from typing import Any

from phi3v.training.activations import REGIMES
from phi3v.training.strategies import STRATEGIES


def format_plan(plan: dict[str, Any]) -> str:
    """Lay a plan out; see ``phi3v.training.plan.make_plan`` for its keys."""
    gpu, batch = plan["gpu"], plan["batch"]
    own = plan["memory"][plan["strategy"]]
    kept = ", ".join(f"{regime} {_gb(own[regime]['activations'])}" for regime in REGIMES)
    lines = [
        plan["table"],
        "",
        f"largest batch    {batch['tokens']:,} tokens, {batch['crops']} crops",
        f"layers keep      {kept} GB (--activation_memory)",
        f"logits, a chunk  {_gb(own['none']['logits'])} GB",
        f"vision tower     {_gb(own['none']['vision'])} GB while it runs, before the decoder",
        "",
        f"GB on each of {gpu['count']} x {gpu['memory'] / 1e9:.0f} GB, of which "
        f"{gpu['room'] / 1e9:.1f} are planned with; ! does not fit",
        f"{'':<15}{'':>9}{'':>10}{'optimizer':>10}   in all, layers keep",
        f"{'':<15}{'weights':>9}{'gradients':>10}{'states':>10}"
        + "".join(f"{regime:>11}" for regime in REGIMES),
    ]
    for name, regimes in plan["memory"].items():
        one = regimes["none"]
        totals = [regimes[regime]["total"] for regime in REGIMES]
        marked = (f"{_gb(total)}{'!' if total > gpu['room'] else ' '}" for total in totals)
        lines.append(
            f"{STRATEGIES[name].name:<15}{_gb(one['weights']):>9}{_gb(one['gradients']):>10}"
            f"{_gb(one['states']):>10}" + "".join(f"{text:>11}" for text in marked)
        )
    return "\n".join([*lines, "", *_last_lines(plan)])


def _last_lines(plan: dict[str, Any]) -> list[str]:
    choice, epoch, gpu = plan["proposal"], plan["epoch"], plan["gpu"]
    shared = epoch["shared_tokens"]
    if choice["strategy"] is None:
        proposal = "none fits: take LoRA, --bits 4, fewer crops, shorter samples or more GPUs"
    else:
        name = STRATEGIES[choice["strategy"]].name
        proposal = f"{name}, --activation_memory {choice['regime']}"
        if choice["tokens"]:
            proposal += f"\n{'':<17}with batches of up to {choice['tokens']:,} tokens"
    cache = plan["cache_vision"]
    return [
        f"proposal         {proposal}",
        f"epoch            {epoch['samples']:,} samples, {epoch['tokens']:,} tokens, "
        f"{epoch['operations']:.2e} operations",
        *([f"{'':<17}{shared:,} of the tokens are shared"] if shared else []),
        *(_row_lines(epoch["rows"]) if epoch["rows"] else []),
        f"time             {_duration(epoch['seconds'])} an epoch at MFU {epoch['mfu']:g} of "
        f"{gpu['count']} x {gpu['name']}",
        *(_cache_lines(cache) if cache else []),
    ]


def _row_lines(rows: dict[str, Any]) -> list[str]:
    fuller, count = rows["fuller"], rows["count"]
    line = f"rows             {count:,} of {rows['tokens']:,} tokens, {rows['full']:.1%} full"
    if not fuller:
        return [line]
    return [f"{line};", f"{'':<17}{fuller['full']:.1%} with --pack_tokens {fuller['tokens']}"]


def _cache_lines(cache: dict[str, Any]) -> list[str]:
    return [
        f"--cache_vision   {_gb(cache['num_bytes'])} GB, read in {_duration(cache['reading'])} of "
        f"an epoch instead of {_duration(cache['tower'])}",
        f"{'':<17}of the tower: {cache['verdict']}",
    ]


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
