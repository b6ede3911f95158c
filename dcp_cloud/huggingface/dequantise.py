"""From quantised values and their scales to numbers, box by box.

Two kinds are known, those of torch's ``QuantizedHuggingFaceStorageReader``: ``X.weight`` with ``X.weight_scale_inv``,
one scale for each square block (DeepSeek-V3), and ``X_blocks`` with ``X_scales``, groups of 4-bit floats with one
exponent each (MXFP4, gpt-oss; https://github.com/openai/gpt-oss/blob/main/gpt_oss/torch/weights.py).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from dcp_cloud.checkpoint.tiling import Box

_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_EXPONENT_BIAS = 127


class Scheme(Protocol):
    """How one tensor was quantised."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor that it stands for."""
        ...

    def sources(self, box: Box) -> tuple[Box, Box]:
        """Give the boxes of the stored values and of the scales that a box of the tensor needs."""
        ...

    def dequantise(self, values: torch.Tensor, scales: torch.Tensor, box: Box, dtype: torch.dtype) -> torch.Tensor:
        """Compute a box of the tensor from what ``sources`` named."""
        ...


@dataclass(frozen=True, slots=True)
class SquareBlocks:
    """One scale for each square block of a matrix.

    Args:
        shape: Shape of the matrix.
        block: Length of a block's side.
    """

    shape: tuple[int, ...]
    block: int

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """Shape that the scales must have."""
        return tuple(-(-size // self.block) for size in self.shape)

    def sources(self, box: Box) -> tuple[Box, Box]:
        """Give the boxes of the stored values and of the scales that a box of the matrix needs."""
        first = tuple(offset // self.block for offset in box.offsets)
        stop = tuple(-(-(offset + size) // self.block) for offset, size in zip(box.offsets, box.sizes, strict=True))
        return box, Box(first, tuple(b - a for a, b in zip(first, stop, strict=True)))

    def dequantise(self, values: torch.Tensor, scales: torch.Tensor, box: Box, dtype: torch.dtype) -> torch.Tensor:
        """Compute a box of the matrix."""
        scales = scales.to(torch.float32)
        for dim in range(2):
            skipped = box.offsets[dim] % self.block
            scales = scales.repeat_interleave(self.block, dim).narrow(dim, skipped, box.sizes[dim])
        # As torch's reader: multiplied in float32, since CPUs cannot multiply the short dtypes.
        return (values.to(torch.float32) * scales).to(dtype)


@dataclass(frozen=True, slots=True)
class Mxfp4Groups:
    """Groups of 4-bit floats along the last dimension, two in each byte, with one exponent for a group.

    Args:
        stored: Shape of the bytes: ``[..., groups, bytes of a group]``.
    """

    stored: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor that the groups stand for."""
        return (*self.stored[:-2], self.stored[-2] * self._group)

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """Shape that the scales must have."""
        return self.stored[:-1]

    @property
    def _group(self) -> int:
        return 2 * self.stored[-1]

    def sources(self, box: Box) -> tuple[Box, Box]:
        """Give the boxes of the stored values and of the scales that a box of the tensor needs."""
        first = box.offsets[-1] // self._group
        groups = -(-(box.offsets[-1] + box.sizes[-1]) // self._group) - first
        scales = Box((*box.offsets[:-1], first), (*box.sizes[:-1], groups))
        return Box((*scales.offsets, 0), (*scales.sizes, self.stored[-1])), scales

    def dequantise(self, values: torch.Tensor, scales: torch.Tensor, box: Box, dtype: torch.dtype) -> torch.Tensor:
        """Compute a box of the tensor."""
        table = torch.tensor(_FP4, dtype=dtype)
        numbers = torch.stack((table[(values & 0x0F).long()], table[(values >> 4).long()]), dim=-1).flatten(-2)
        numbers = torch.ldexp(numbers, (scales.to(torch.int32) - _EXPONENT_BIAS).unsqueeze(-1)).flatten(-2)
        return numbers.narrow(-1, box.offsets[-1] % self._group, box.sizes[-1]).to(dtype)


def find_scale(name: str, names: Collection[str]) -> str | None:
    """Find the scales of a quantised tensor.

    Args:
        name: A tensor's name.
        names: All names.

    Returns:
        The name of its scales, or None if it is not quantised.
    """
    for values, scales in ((".weight", ".weight_scale_inv"), ("_blocks", "_scales")):
        if name.endswith(values) and (found := name[: -len(values)] + scales) in names:
            return found
    return None


def tiles(box: Box, max_elements: int) -> list[Box]:
    """Halve a box along its outermost divisible dimension until its pieces are short enough.

    Args:
        box: The box.
        max_elements: Longest piece.

    Returns:
        Pieces that together are the box.
    """
    found, pending = [], [box]
    while pending:
        piece = pending.pop()
        elements = _volume(piece.sizes)
        if elements <= max(max_elements, 1):
            if elements:
                found.append(piece)
            continue
        dim = next(index for index, size in enumerate(piece.sizes) if size > 1)
        half = piece.sizes[dim] // 2
        for start, size in ((0, half), (half, piece.sizes[dim] - half)):
            offsets, sizes = list(piece.offsets), list(piece.sizes)
            offsets[dim] += start
            sizes[dim] = size
            pending.append(Box(tuple(offsets), tuple(sizes)))
    return found


def _volume(sizes: Sequence[int]) -> int:
    volume = 1
    for size in sizes:
        volume *= size
    return volume
