"""State dicts that a seed decides; each version of one has the same names and shapes, and other values."""

from __future__ import annotations

import random
from typing import Any

import torch

from tests.checkpoint.states import ALL_DTYPES

_MAX_TENSORS = 8
_LARGE_NUMEL = 3_200_000  # 12 MiB of float32: on S3, parts have 5 MiB or more


def make_state(seed: int, version: int, *, is_large: bool = False) -> dict[str, Any]:
    """Make a version of the state dict of a seed."""
    shapes = random.Random(f"shapes {seed}")
    values = torch.Generator().manual_seed(seed * 1000 + version)
    if shapes.random() < 0.02:
        return {}
    state: dict[str, Any] = {"stamp": torch.full((shapes.randint(1, 300),), float(version)), "version": version}
    for number in range(shapes.randint(0, _MAX_TENSORS)):
        state[f"w{number}"] = _tensor(shapes, values)
    if is_large:
        state["large"] = torch.randint(0, 2**31, (_LARGE_NUMEL,), dtype=torch.int32, generator=values)
    if shapes.random() < 0.5:
        state["nested"] = {"list": [_tensor(shapes, values), version, f"text {version}"], "deep": {"x": version / 7}}
    if shapes.random() < 0.5:
        state |= {"text": f"é{version}" * shapes.randint(0, 200), "flag": version % 2 == 0, "pair": (version, "b")}
    if shapes.random() < 0.3:
        state |= {"nothing": None, "bytes": [version] * shapes.randint(0, 50)}
    return state


def sharded_names(state: dict[str, Any]) -> list[str]:
    """Name the tensors whose rows can be spread over ranks."""
    return [name for name, value in state.items() if isinstance(value, torch.Tensor) and value.dim() and value.shape[0]]


def _tensor(shapes: random.Random, values: torch.Generator) -> torch.Tensor:
    dtype = shapes.choice(ALL_DTYPES)
    shape = shapes.choice(((), (0,), (1,), (7,), (4, 5), (0, 3), (3, 1, 4), (64, 33), (5, 2, 2, 3), (2000,), (17, 129)))
    layout = shapes.choice(("plain", "plain", "plain", "turned", "slice", "strided", "expanded", "parameter"))
    if layout == "turned":
        return _bits(shape[::-1], dtype, values).permute(tuple(reversed(range(len(shape)))))
    if layout == "slice" and shape:
        return _bits((shape[0] + 3, *shape[1:]), dtype, values)[2 : 2 + shape[0]]
    if layout == "strided" and shape:
        return _bits((*shape[:-1], 2 * shape[-1]), dtype, values)[..., ::2]
    if layout == "expanded" and shape and shape[0]:
        return _bits((1, *shape[1:]), dtype, values).expand(shape)
    tensor = _bits(shape, dtype, values)
    if layout == "parameter" and (dtype.is_floating_point or dtype.is_complex) and dtype.itemsize > 1:
        return torch.nn.Parameter(tensor)
    return tensor


def _bits(shape: tuple[int, ...], dtype: torch.dtype, values: torch.Generator) -> torch.Tensor:
    numel = 1
    for size in shape:
        numel *= size
    high = 2 if dtype == torch.bool else 256
    return (
        torch.randint(0, high, (numel * dtype.itemsize,), dtype=torch.uint8, generator=values).view(dtype).view(shape)
    )
