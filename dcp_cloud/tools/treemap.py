"""Areas in proportion to sizes: nested rectangles as square as can be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

# Below these, pixels, a rectangle is not divided any further: nobody could tell its parts apart.
_MIN_SIDE, _MIN_AREA = 24.0, 2500.0
_PADDING, _HEADER = 2.0, 15.0
_MAX_DEPTH = 5
# Below this, pixels, a part is not drawn by itself but with its like.
_MIN_TILE_AREA = 4.0
# Segments of a name that can make a level; a forged name could have millions.
_MAX_SEGMENTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A rectangle of the map, in pixels.

    Args:
        name: Full name of what it stands for.
        label: Last segment of the name.
        size: What its area is in proportion to.
        leaves: How many tensors are in it.
        depth: 0 for the outermost.
        family: Number of the outermost rectangle that it is in.
        is_divided: Whether there are others in it.
        x: Left edge.
        y: Upper edge.
        width: Width.
        height: Height.
    """

    name: str
    label: str
    size: float
    leaves: int
    depth: int
    family: int
    is_divided: bool
    x: float
    y: float
    width: float
    height: float


@dataclass(slots=True)
class _Node:
    name: str
    label: str
    size: float = 0.0
    leaves: int = 0
    children: dict[str, _Node] = field(default_factory=dict)


def make_treemap(sizes: Iterable[tuple[str, float]], *, width: float, height: float) -> list[Tile]:
    """Lay out names by their dotted segments.

    Args:
        sizes: Dotted name and size of each leaf; sizes of 0 take no place.
        width: Width of the map, pixels.
        height: Height of the map, pixels.

    Returns:
        The tiles, outer ones before those in them.
    """
    root = _Node("", "")
    for name, size in sizes:
        if size > 0:
            _insert(root, name, size)
    tiles: list[Tile] = []
    _place(root, (0.0, 0.0, width, height), depth=0, family=None, add=tiles.append)
    return tiles


def squarify(sizes: Sequence[float], x: float, y: float, width: float, height: float) -> Iterator[tuple[float, ...]]:
    """Divide a rectangle in proportion, in rows along its shorter side (Bruls, Huizing and van Wijk, 2000).

    Args:
        sizes: What the areas are in proportion to, above 0, best in falling order.
        x: Left edge.
        y: Upper edge.
        width: Width.
        height: Height.

    Yields:
        Left edge, upper edge, width and height of each part, in order.
    """
    scale = width * height / sum(sizes) if sizes else 0.0
    areas = [size * scale for size in sizes]
    start = 0
    while start < len(areas):
        side = min(width, height)
        stop = start + 1
        total = least = most = areas[start]
        while stop < len(areas):
            area = areas[stop]
            wider = total + area, min(least, area), max(most, area)
            if _worst(*wider, side) > _worst(total, least, most, side):
                break
            (total, least, most), stop = wider, stop + 1
        row = areas[start:stop]
        # What rounding leaves for the last ones may be thinner than their area needs; nothing may stand out.
        thickness = min(sum(row) / side, max(width, height)) if side else 0.0
        offset = 0.0
        for area in row:
            length = min(area / thickness, max(side - offset, 0.0)) if thickness else 0.0
            yield (x, y + offset, thickness, length) if height <= width else (x + offset, y, length, thickness)
            offset += length
        if height <= width:
            x, width = x + thickness, max(width - thickness, 0.0)
        else:
            y, height = y + thickness, max(height - thickness, 0.0)
        start = stop


def _worst(total: float, least: float, most: float, side: float) -> float:
    """Give the largest ratio of two sides in a row of areas."""
    if not total or not side or not least:
        return float("inf")
    return max(side * side * most / total**2, total**2 / (side * side * least))


def _insert(root: _Node, name: str, size: float) -> None:
    node, path = root, ""
    for segment in name.split(".", _MAX_SEGMENTS - 1):
        path = f"{path}.{segment}" if path else segment
        node.size += size
        node.leaves += 1
        node = node.children.setdefault(segment, _Node(path, segment))
    node.size += size
    node.leaves += 1


def _place(node: _Node, box: tuple[float, ...], *, depth: int, family: int | None, add: Callable[[Tile], None]) -> None:
    x, y, width, height = box
    children = _visible(node, width * height)
    boxes = squarify([child.size for child in children], x, y, width, height)
    for number, (child, (left, top, wide, high)) in enumerate(zip(children, boxes, strict=True)):
        child = _skip_single(child)  # noqa: PLW2901 - a chain of one is shown as one
        own = number if family is None else family
        is_divided = bool(
            child.children and depth < _MAX_DEPTH and min(wide, high) > 2 * _MIN_SIDE and wide * high > _MIN_AREA
        )
        add(
            Tile(
                name=child.name,
                label=child.name[len(node.name) :].lstrip("."),
                size=child.size,
                leaves=child.leaves,
                depth=depth,
                family=own,
                is_divided=is_divided,
                x=left,
                y=top,
                width=wide,
                height=high,
            )
        )
        if is_divided:
            inner = (left + _PADDING, top + _HEADER, wide - 2 * _PADDING, high - _HEADER - _PADDING)
            _place(child, inner, depth=depth + 1, family=own, add=add)


def _visible(node: _Node, area: float) -> list[_Node]:
    """Give what is in a node, the largest first; what is too small to be seen is put together."""
    least = _MIN_TILE_AREA * node.size / area if area > 0 else 0.0
    small = [child for child in node.children.values() if child.size < least]
    children = [child for child in node.children.values() if child.size >= least] if len(small) > 1 else None
    if children is None:
        children = list(node.children.values())
    else:
        label = f"… {len(small):,} more"
        name = f"{node.name}.{label}" if node.name else label
        children.append(_Node(name, label, sum(one.size for one in small), sum(one.leaves for one in small)))
    return sorted(children, key=lambda child: (-child.size, child.name))


def _skip_single(node: _Node) -> _Node:
    while len(node.children) == 1:
        (only,) = node.children.values()
        if only.leaves != node.leaves:
            break
        node = only
    return node
