"""Whether an archive is intact, from its bytes or from its ends and checksums of the rest."""

from __future__ import annotations

import io
import zipfile
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcp_cloud.format.intact import PartlyHeld, Run, check_archive
from tests.unit.format.strategies import no_checksums

OBJECTS = {
    "tensor": torch.arange(300.0).reshape(20, 15),
    "transposed": torch.arange(300.0).reshape(20, 15).t(),
    "empty": torch.empty(0, 3),
    "several storages": {"a": torch.ones(4), "b": torch.zeros(5), "c": [1, "x"]},
    "value": 7,
}


def saved(thing: object) -> bytes:
    stream = io.BytesIO()
    torch.save(thing, stream)
    return stream.getvalue()


def cut(data: bytes, head: int = 2048, tail: int = 2048, block: int = 1000) -> PartlyHeld:
    middle = data[head : len(data) - tail]
    runs = [
        Run(len(middle[at : at + block]), zlib.crc32(middle[at : at + block])) for at in range(0, len(middle), block)
    ]
    return PartlyHeld(head=data[:head], middle=runs, tail=data[len(data) - tail :])


@pytest.mark.parametrize("name", sorted(OBJECTS))
def test_whatever_torch_saves_is_intact(name):
    """Archives of tensors and of other values are recognised, and all their records hold."""
    assert check_archive(PartlyHeld(head=saved(OBJECTS[name]))).status == "intact"


@given(data=st.data())
@settings(max_examples=200)
def test_a_changed_byte_of_a_record_is_damage(data):
    """Any changed byte of any record is found, also where only the ends of a long archive are held."""
    archive = saved(torch.arange(5000.0))
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        record = data.draw(st.sampled_from([info for info in opened.infolist() if info.file_size]))
    start = record.header_offset + 30
    start += sum(int.from_bytes(archive[at : at + 2], "little") for at in (start - 4, start - 2))
    position = start + data.draw(st.integers(0, record.file_size - 1))
    changed = bytearray(archive)
    changed[position] ^= data.draw(st.integers(1, 255))
    for item in (PartlyHeld(head=bytes(changed)), cut(bytes(changed))):
        finding = check_archive(item)
        assert finding.status == "damaged"
        assert record.filename in finding.cause
    assert check_archive(cut(archive)).status == "intact"


@given(st.binary(max_size=200), st.integers(0, 2000), st.booleans())
def test_foreign_bytes_never_raise(junk, length, is_archive):
    """Junk, and archives with junk at any place, lead to a finding, never to an exception."""
    archive = saved(torch.ones(3))
    data = archive[:length] + junk + (archive[length:] if is_archive else b"")
    assert check_archive(PartlyHeld(head=data)).status in ("intact", "damaged", "unknown")
    assert check_archive(cut(data, 100, 100, 50) if len(data) > 200 else PartlyHeld(head=data)).status


def test_an_archive_without_checksums_says_nothing():
    """torch can be told to compute no checksums; that is not damage."""
    with no_checksums():
        archive = saved(torch.ones(3))
    assert check_archive(PartlyHeld(head=archive)).status == "unknown"


def test_bytes_that_are_no_archive_say_nothing():
    """Other formats are not called damaged."""
    assert check_archive(PartlyHeld(head=b"safetensors " * 20)).status == "unknown"


def test_a_cut_off_archive_is_damaged():
    """An archive that has lost its end is damaged: its beginning says that it is one."""
    assert check_archive(PartlyHeld(head=saved(torch.ones(3))[:-1])).status == "damaged"
