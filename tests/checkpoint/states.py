"""State dicts to save and to fill, and how to compare them."""

from __future__ import annotations

from typing import Any

import torch


def equal(a: Any, b: Any) -> bool:
    """Compare two state dicts bit by bit, containers included."""
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and torch.equal(as_bytes(a), as_bytes(b))
        )
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Give a tensor's values as bytes, so that NaNs and fp8 compare too."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    # contiguous() would leave a single element whatever stride it has.
    return plain.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)


def zeros_like(state: Any) -> Any:
    """Make a state dict of the same structure to load into."""
    if isinstance(state, torch.Tensor):
        return torch.zeros_like(state.detach(), memory_format=torch.contiguous_format)
    if isinstance(state, dict):
        return {key: zeros_like(value) for key, value in state.items()}
    if isinstance(state, list):
        return [zeros_like(value) for value in state]
    return type(state)() if isinstance(state, (int, float, str)) else None


ALL_DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
    torch.float32, torch.float64, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip


def random_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Make a tensor of any dtype with arbitrary bits (bools stay 0 or 1)."""
    numel = 1
    for size in shape:
        numel *= size
    high = 2 if dtype == torch.bool else 256
    raw = torch.randint(0, high, (numel * dtype.itemsize,), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def odd_tensors() -> dict[str, torch.Tensor]:
    """Make tensors of every shape and layout that has ever troubled a writer."""
    base = torch.arange(24 * 10, dtype=torch.float32).reshape(24, 10)
    return {
        "plain": base.clone(),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "view": base[4:8],
        "columns": base[:, 2:5],
        "transposed": base.t(),
        "expanded": torch.arange(5.0).expand(3, 5),
        "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "conj": torch.randn(4, 3, dtype=torch.complex64).conj(),
        "negative": torch.randn(4, 3, dtype=torch.complex64).conj().imag,
        "parameter": torch.nn.Parameter(torch.randn(7, 3)),
        "strided": torch.arange(20.0)[::2],
        "large": torch.randn(1500, 1000),
    }


def training_state(seed: int) -> dict[str, Any]:
    """Make what a training loop saves: model, AdamW, scheduler, random state, position."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for _ in range(3):
        model(torch.randn(8, 64)).square().mean().backward()
        optimizer.step()
        scheduler.step()
    return {
        "model": model.state_dict(),
        "optim": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "rng": torch.get_rng_state(),
        "position": {"epoch": 3, "samples": 1234, "name": "train"},
    }
