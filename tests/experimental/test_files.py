"""What one rank writes and reads: the file, whole and in part, ours and torch's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint._experimental import CheckpointReader, RankInfo

from dcp_cloud import CloudCheckpointReader, StoreURI, TransferConfig, make_cloud_sync_checkpointer, open_store
from dcp_cloud.errors import (
    CheckpointNotFoundError,
    ConfigError,
    CorruptCheckpointError,
    StateDictMismatchError,
    UnsafeCheckpointError,
    UnsupportedFormatError,
)
from dcp_cloud.testing import Fault, FaultyStore
from dcp_cloud.transfer.events import RequestDone, TransferEvent
from tests.checkpoint.states import ALL_DTYPES, equal, odd_tensors, random_bytes
from tests.experimental import jobs

ALONE = RankInfo(global_rank=0, global_world_size=1)
Place = Callable[..., str]


@pytest.fixture
def directory(tmp_path: Path) -> str:
    """A checkpoint of one rank, saved by this package, in a local directory."""
    jobs.writer(f"file://{tmp_path}").write(f"file://{tmp_path}", jobs.state(0))
    return str(tmp_path)


def reader(**settings: object) -> CloudCheckpointReader:
    return CloudCheckpointReader(ALONE, **settings)  # type: ignore[arg-type]


def test_torch_opens_what_we_write(directory: str) -> None:
    """torch.load, mapped or not, and torch's own reader give the same tensors."""
    file = f"{directory}/checkpoint_0.pt"
    assert equal(torch.load(file), jobs.state(0))
    assert equal(torch.load(file, mmap=True), jobs.state(0))
    assert equal(CheckpointReader(ALONE).read(directory)[0], jobs.state(0))


def test_we_open_what_torch_writes(tmp_path: Path) -> None:
    """A directory of torch's writer has no manifest and is read whole and in part all the same."""
    torch.save(jobs.state(0), tmp_path / "checkpoint_0.pt")
    assert equal(reader().read(f"file://{tmp_path}")[0], jobs.state(0))
    found, missing = reader().read(f"file://{tmp_path}", jobs.wanted())
    assert missing == ["model.gone", "missing"]
    assert equal(found["transposed"], jobs.state(0)["transposed"])


def test_storages_are_shared_as_they_were(directory: str) -> None:
    """Views of one tensor are stored once, and are views again after a whole load."""
    loaded = reader().read(f"file://{directory}")[0]
    assert loaded["view"].untyped_storage().data_ptr() == loaded["base"].untyped_storage().data_ptr()
    assert loaded["transposed"].stride() == (1, 1000)


@pytest.mark.parametrize("part_size_bytes", [100_003, 16 * 2**20])
def test_every_layout_and_dtype_survives(tmp_path: Path, part_size_bytes: int) -> None:
    """Whatever torch.save takes comes back, whole and by name, however it is cut into parts."""
    uri = f"file://{tmp_path}"
    plain = odd_tensors() | {str(dtype): random_bytes((5, 3), dtype) for dtype in ALL_DTYPES}
    transfer = TransferConfig(part_size_bytes=part_size_bytes)
    sparse = torch.eye(3).to_sparse()
    jobs.writer(uri, transfer=transfer).write(uri, {**plain, "sparse": sparse})
    loaded = reader(transfer=transfer).read(uri)[0]
    assert torch.equal(loaded.pop("sparse").to_dense(), sparse.to_dense())
    assert equal(loaded, {**plain, "parameter": loaded["parameter"]})
    names = [name for name in plain if name not in ("conj", "negative")]
    found, missing = reader(transfer=transfer).read(uri, dict.fromkeys(names))
    assert missing == []
    assert [name for name in names if not equal(found[name], plain[name].detach())] == []


@pytest.mark.parametrize("name", ["conj", "sparse"])
def test_what_cannot_be_read_by_itself_is_said_so(tmp_path: Path, name: str) -> None:
    """A tensor that is more than its bytes is refused in a partial read, not read wrong."""
    uri = f"file://{tmp_path}"
    tensors = {"conj": torch.randn(4, dtype=torch.complex64).conj(), "sparse": torch.eye(3).to_sparse()}
    jobs.writer(uri).write(uri, tensors)
    with pytest.raises(UnsupportedFormatError, match=name):
        reader().read(uri, {name: None})


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
def test_a_part_is_filled_in_place_and_by_strides(directory: str) -> None:
    """Targets keep their memory; transposed and cut-out tensors are right (torch's reader mixes their values up)."""
    targets = jobs.wanted()
    transposed, parameter = targets["transposed"], targets["parameter"]
    found, missing = reader().read(f"file://{directory}", targets)
    saved = jobs.state(0)
    assert missing == ["model.gone", "missing"]
    assert found["transposed"] is transposed
    assert found["parameter"] is parameter
    for name in ("transposed", "view", "columns", "pair", "step"):
        assert equal(found[name], saved[name]), name
    assert equal(found["parameter"].detach(), saved["parameter"].detach())
    assert equal(found["model"]["bias"], saved["model"]["bias"])
    assert equal(found["missing"], torch.zeros(1))
    theirs = CheckpointReader(ALONE).read(directory, {"transposed": torch.zeros(1000, 24)})[0]
    assert not equal(theirs["transposed"], saved["transposed"])  # else torch has mended it, and this says nothing


def test_tuples_hold_tensors_with_data(directory: str) -> None:
    """Tensors within tuples are read (torch's reader gives fake ones)."""
    found = reader().read(f"file://{directory}", {"pair": None})[0]
    assert equal(found["pair"], jobs.state(0)["pair"])


def test_only_the_wanted_bytes_are_fetched(directory: str) -> None:
    """A small tensor of a file of 7 MB costs its own bytes and the file's table of contents."""
    sizes: list[int] = []

    def note(event: TransferEvent) -> None:
        if isinstance(event, RequestDone) and event.verb.startswith("get"):
            sizes.append(event.size_bytes)

    found = reader(on_event=note).read(f"file://{directory}", {"half": None})[0]
    assert equal(found["half"], jobs.state(0)["half"])
    assert sum(sizes) < 80_000 < os.path.getsize(f"{directory}/checkpoint_0.pt") // 50


def test_a_view_costs_the_bytes_from_its_first_element_to_its_last(tmp_path: Path) -> None:
    """Columns of a long tensor are read by themselves, from its middle and from its first byte."""
    sizes: list[int] = []

    def note(event: TransferEvent) -> None:
        if isinstance(event, RequestDone) and event.verb.startswith("get"):
            sizes.append(event.size_bytes)

    base = torch.arange(3_000_000.0).reshape(1000, 3000)
    views = {"first": base[:2, :5], "middle": base[500:503, 7:12], "turned": base[900:902].t()}
    jobs.writer(f"file://{tmp_path}").write(f"file://{tmp_path}", views)
    for name, view in views.items():
        sizes.clear()
        found = reader(on_event=note).read(f"file://{tmp_path}", {name: None})[0]
        assert equal(found[name], view)
        assert sum(sizes) < 120_000, name


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"base": torch.zeros(3)}, "base"),
        ({"base": torch.zeros(24, 1000, dtype=torch.float64)}, "float64"),
        ({"model": torch.zeros(3)}, "model"),
        ({"step": "three"}, "step"),
        ({"list": 3}, "list"),
    ],
)
def test_what_does_not_fit_is_told(directory: str, target: dict, message: str) -> None:
    """Other sizes, dtypes and types are one typed error before a byte is read, and the state dict stays as it was."""
    whole = {"name": None, "half": None, "nested": {}, **target}
    before = dict(whole)
    with pytest.raises(StateDictMismatchError, match=message):
        reader().read(f"file://{directory}", whole)
    assert all(whole[name] is before[name] for name in before)


def test_map_location_decides_where_new_tensors_are(directory: str) -> None:
    """Whole and partial reads put tensors where torch.load would; existing targets stay where they are."""
    assert reader().read(f"file://{directory}", map_location="meta")[0]["base"].device.type == "meta"
    found = reader().read(
        f"file://{directory}", {"base": None, "half": torch.zeros(33).bfloat16()}, map_location="meta"
    )
    assert [found[0][name].device.type for name in ("base", "half")] == ["meta", "cpu"]
    with pytest.raises(ConfigError, match="map_location"):
        reader().read(f"file://{directory}", map_location={"cpu": "cuda:99"})
    with pytest.raises(ConfigError, match="mmap"):
        reader().read(f"file://{directory}", mmap=True)


@pytest.mark.parametrize("part_size_bytes", [1_000_003, 16 * 2**20])
@pytest.mark.parametrize("state_dict", [None, {"model": {"weight": None}}], ids=["whole", "part"])
def test_a_changed_byte_is_noticed(directory: str, state_dict: dict | None, part_size_bytes: int) -> None:
    """The checksums that torch.save stores are compared, however the read was cut; a state dict keeps its ``None``."""
    with open(f"{directory}/checkpoint_0.pt", "r+b") as file:
        file.seek(3_000_000)
        byte = file.read(1)
        file.seek(3_000_000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(CorruptCheckpointError, match="CRC-32"):
        reader(transfer=TransferConfig(part_size_bytes=part_size_bytes)).read(f"file://{directory}", state_dict)
    assert state_dict in (None, {"model": {"weight": None}})


@pytest.mark.parametrize("cut", [0, 50, 100_000, 6_000_000])
def test_a_file_that_was_cut_off_is_noticed(directory: str, cut: int) -> None:
    """A file without its end is an error of this package."""
    os.truncate(f"{directory}/checkpoint_0.pt", cut)
    with pytest.raises((CorruptCheckpointError, UnsupportedFormatError)):
        reader().read(f"file://{directory}")


class Gadget:
    """Does something when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("exit 3",)


class Harmless:
    """A class of a user."""


def test_a_hostile_file_runs_nothing(tmp_path: Path) -> None:
    """Names that torch does not allow are refused; types of one's own can be allowed."""
    uri = f"file://{tmp_path}"
    torch.save({"gadget": Gadget()}, tmp_path / "checkpoint_0.pt")
    with pytest.raises(UnsafeCheckpointError, match="system"):
        reader().read(uri)
    torch.save({"mine": Harmless()}, tmp_path / "checkpoint_0.pt")
    with pytest.raises(UnsafeCheckpointError, match="Harmless"):
        reader().read(uri, {"mine": None})
    assert isinstance(reader(safe_globals=[Harmless]).read(uri)[0]["mine"], Harmless)


def test_a_hostile_file_ends_nothing(tmp_path: Path) -> None:
    """A key of a million tuples would overflow the stack of the process; it is an error."""
    pickled = b"\x80\x02}" + b")" + b"\x85" * 1_000_000 + b"Ns."
    writer = torch._C.PyTorchFileWriter(str(tmp_path / "checkpoint_0.pt"))
    writer.write_record("data.pkl", pickled, len(pickled))
    writer.write_end_of_file()
    with pytest.raises(UnsafeCheckpointError, match="nests tuples"):
        reader().read(f"file://{tmp_path}", {"mine": None})


def test_strict_loads_complain(directory: str) -> None:
    """A checkpointer's strict load raises what torch's raises."""
    checkpointer = make_cloud_sync_checkpointer(rank_info=ALONE)
    with pytest.raises(RuntimeError, match="missing keys"):
        checkpointer.load(f"file://{directory}", jobs.wanted(), strict=True)
    with pytest.raises(CheckpointNotFoundError):
        checkpointer.load(f"file://{directory}/elsewhere")
    checkpointer.close()


def test_a_state_dict_that_cannot_be_pickled_leaves_nothing(tmp_path: Path) -> None:
    """What torch.save cannot save is a typed error, and no half file is left."""
    uri = f"file://{tmp_path}"
    with pytest.raises(UnsupportedFormatError):
        jobs.writer(uri).write(uri, {"large": torch.zeros(3_000_000), "bad": (n for n in range(3))})
    assert list(open_store(uri).list()) == []


def test_passing_errors_are_tried_again(place: Place) -> None:
    """Throttled and broken requests are repeated within the save and the load, through real sockets."""
    uri = place(base_delay="1ms")
    faults = [Fault(kind="throttle", verb="put_part", times=2), Fault(kind="fail", verb="get_range", nth=2, times=2)]
    store = FaultyStore(open_store(uri), faults=faults)
    jobs.writer(uri, store=store, transfer=jobs.PARTS).write(uri, jobs.state(0))
    assert equal(reader(store=store).read(uri)[0], jobs.state(0))


def test_a_uri_makes_no_local_directory(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's writer would save to a directory called ``s3:``; ours does not, and refuses a path that lost a slash."""
    monkeypatch.chdir(tmp_path)
    uri = place()
    jobs.writer(uri).write(uri, {"a": 1})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="lost a slash"):
        jobs.writer(uri).write(Path(StoreURI.parse(uri).root), {"a": 1})  # type: ignore[arg-type]
