from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageInfo

from dcp_cloud.errors import CorruptCheckpointError
from dcp_cloud.format.layout import (
    RawData,
    StoredItem,
    data_key,
    from_storage_info,
    is_data_key,
    metadata_key,
    rank_of_metadata_key,
    to_storage_info,
)

CRCS = st.integers(0, 2**32 - 1)
NATURALS = st.integers(0, 2**40)


@st.composite
def items(draw: st.DrawFn) -> StoredItem:
    offset, lead, size, trail = draw(NATURALS), draw(st.integers(0, 9999)), draw(st.integers(0, 2**25)), draw(NATURALS)
    raw = None
    if draw(st.booleans()):
        page_bytes = draw(st.sampled_from([4096, 1 << 18, 1 << 22]))
        pages = -(-size // page_bytes)
        raw = RawData(
            offset=offset + lead,
            size_bytes=size,
            strides=draw(st.none() | st.lists(NATURALS, max_size=4).map(tuple)),
            crc32=draw(CRCS),
            page_crc32=tuple(n * draw(CRCS) % 2**32 for n in range(pages)) if pages > 1 else (),
            page_bytes=page_bytes,
        )
    return StoredItem(
        key=draw(st.sampled_from(["a", "a/b.c", "__0_0.0123.distcp"])),
        offset=offset,
        size_bytes=lead + size + trail,
        transforms=draw(st.lists(st.text(max_size=5), max_size=2).map(tuple)),
        crc32=draw(st.none() | CRCS),
        raw=raw,
    )


@given(items())
def test_records_survive_storage(item: StoredItem) -> None:
    """An item's record is the same after it went through torch's record and a pickle."""
    info = pickle.loads(pickle.dumps(to_storage_info(item)))
    assert from_storage_info(info) == item
    assert (info.relative_path, info.offset, info.length) == (item.key, item.offset, item.size_bytes)


def test_records_of_other_writers() -> None:
    """torch's own record has no extra attribute, and is enough."""
    assert from_storage_info(_StorageInfo("__0_0.distcp", 5, 7)) == StoredItem(
        key="__0_0.distcp", offset=5, size_bytes=7
    )


def test_records_of_newer_versions() -> None:
    """An extra attribute of a version to come is passed over."""
    info = _StorageInfo("__0_0.distcp", 5, 7)
    info.dcp_cloud = (3, "anything", {})
    assert from_storage_info(info) == StoredItem(key="__0_0.distcp", offset=5, size_bytes=7)


class Hostile:
    """Raises wherever it is looked at."""

    def _fail(self, *_: object) -> bool:
        raise ZeroDivisionError

    __eq__ = __ne__ = __bool__ = __len__ = __repr__ = __str__ = __lt__ = __le__ = __ge__ = __iter__ = _fail
    __hash__ = None


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([0, 1, 5, 7, 2**63, float("nan")]),
        st.sampled_from([60, 100_000]).map(lambda bits: 1 << bits),
        st.text(max_size=8),
        st.sampled_from(["a", "a/b", "../a", "/a", "a//b", "s3://a", "\ud800", "a\n", "a" * 2000, "C:\\x"]),
        st.binary(max_size=8),
        st.builds(Hostile),
    ),
    lambda inner: st.lists(inner, max_size=5) | st.lists(inner, max_size=5).map(tuple),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["relative_path", "offset", "length", "transform_descriptors"]), VALUES), VALUES)
def test_arbitrary_records_are_items_or_damage(fields: dict[str, object], attribute: object) -> None:
    """Whatever a record holds, reading it gives a sound item or a typed error."""
    info = _StorageInfo("a", 5, 2000)
    vars(info).update(fields, dcp_cloud=attribute)
    _read(info)


def test_records_of_version_1_have_pages_of_4_mib() -> None:
    """The first version of the record did not say how long its pages are."""
    info = _StorageInfo("__0_0.distcp", 5, 9 << 20)
    info.dcp_cloud = (1, None, (705, 5 << 20, None, 1, b"\x02\0\0\0\x03\0\0\0"))
    raw = from_storage_info(info).raw
    assert raw is not None
    assert (raw.page_bytes, raw.page_crc32) == (4 << 20, (2, 3))


@given(st.tuples(*[VALUES] * 6), VALUES)
def test_arbitrary_raw_records_are_items_or_damage(packed: tuple[object, ...], crc32: object) -> None:
    """The same for what this package adds."""
    info = _StorageInfo("a", 5, 2000)
    info.dcp_cloud = (2, crc32, packed)
    _read(info)


def _read(info: _StorageInfo) -> None:
    try:
        item = from_storage_info(info)
    except CorruptCheckpointError as error:
        str(error).encode()
        return
    assert item.offset >= 0
    assert item.size_bytes >= 0
    if item.raw is not None:
        assert item.offset <= item.raw.offset
        assert item.raw.offset + item.raw.size_bytes <= item.offset + item.size_bytes


@pytest.mark.parametrize(
    "place", ["/etc/passwd", "../x", "a/../b", "a/./b", "a//b", "a/", "s3://b", "C:x", "a\\b", "a\x00", "", "\udc80"]
)
def test_names_stay_below_the_prefix(place: str) -> None:
    """The bucket's content cannot choose an object outside of the checkpoint."""
    with pytest.raises(CorruptCheckpointError):
        from_storage_info(_StorageInfo(place, 0, 1))


def test_names_of_objects() -> None:
    """Names are made and recognised by the same rules."""
    save_id = "0123456789abcdef" * 2
    assert data_key(3, 0, save_id) == f"__3_0.{save_id}.distcp"
    assert is_data_key(data_key(3, 0, save_id))
    assert not is_data_key("__3_0.distcp")
    assert (metadata_key(), metadata_key(7)) == (".metadata", "__7.metadata")
    assert [rank_of_metadata_key(key) for key in ("__7.metadata", ".metadata", "x__7.metadata")] == [7, None, None]
