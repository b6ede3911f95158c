"""Conversions: every form into every other, on any store, with the same bits."""

from __future__ import annotations

import itertools
import os
import signal
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader

from dcp_cloud import (
    CloudHuggingFaceStorageReader,
    CloudHuggingFaceStorageWriter,
    CloudStorageReader,
    CloudStorageWriter,
    CloudTorchSaveReader,
    TransferConfig,
    convert_checkpoint,
    dcp_to_torch_save,
    open_store,
    torch_save_to_dcp,
)
from dcp_cloud.errors import CheckpointNotFoundError
from dcp_cloud.transfer.events import Planned, Progressed, RequestDone, TransferEvent
from tests.checkpoint.conftest import every_cloud
from tests.checkpoint.states import ALL_DTYPES, equal, odd_tensors, random_bytes, training_state, zeros_like
from tests.convert import jobs
from tests.huggingface.test_files import state_of_all_dtypes
from tests.support.ranks import run_ranks

Place = Callable[..., str]
every_kind = pytest.mark.parametrize("place", ["memory", "file"], indirect=True)


def save_torch(uri: str, state: Any, tmp_path: Path) -> None:
    """Put a file of torch.save at a URI, as a user would: made locally, then copied."""
    local = tmp_path / "local.pt"
    torch.save(state, local)
    directory, _, name = uri.rpartition("/")
    open_store(directory).put(name, [memoryview(local.read_bytes())])


def load_torch(uri: str, tmp_path: Path) -> Any:
    directory, _, name = uri.rpartition("/")
    copy = tmp_path / "copy.pt"
    copy.write_bytes(open_store(directory).get(name, max_bytes=2**30).data)
    with zipfile.ZipFile(copy) as archive:
        assert archive.testzip() is None
    return torch.load(copy, weights_only=True, mmap=True)


def load_dcp(uri: str, like: Any) -> Any:
    state = zeros_like(like)
    dcp.load(state, storage_reader=CloudStorageReader(uri))
    return state


def plain(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Leave out what a file of torch.save keeps as a flag rather than as values."""
    return {name: value for name, value in state.items() if not (value.is_conj() or value.is_neg())}


@every_kind
@pytest.mark.parametrize("make", [state_of_all_dtypes, odd_tensors])
def test_tensors_go_round_through_all_forms(
    place: Place, make: Callable[[], dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    """DCP to torch.save to safetensors to DCP: every dtype, shape and stride comes back."""
    state = {name: value.detach() for name, value in plain(make()).items()}
    root = place()
    dcp.save(state, storage_writer=CloudStorageWriter(f"{root}/dcp"))
    steps = [
        f"{root}/dcp",
        f"{root}/files/m.pt",
        f"{root}/one.safetensors",
        f"{root}/dcp2",
        f"{root}/hf",
        f"{root}/z.bin",
    ]
    for source, target in itertools.pairwise(steps):
        convert_checkpoint(source, target)
    assert equal(load_torch(steps[1], tmp_path), state)
    assert equal(load_dcp(steps[3], state), state)
    found = zeros_like(state)
    dcp.load(found, storage_reader=CloudHuggingFaceStorageReader(steps[4]))
    assert equal(found, state)
    assert equal(load_torch(steps[5], tmp_path), state)


def test_every_dtype_that_torch_saves_converts_to_dcp_and_back(tmp_path: Path) -> None:
    """Dtypes that safetensors lacks too."""
    state = {str(dtype): random_bytes((3, 5), dtype) for dtype in ALL_DTYPES}
    torch.save(state, tmp_path / "a.pt")
    torch_save_to_dcp(tmp_path / "a.pt", tmp_path / "dcp")
    dcp_to_torch_save(tmp_path / "dcp", tmp_path / "b.pt")
    assert equal(torch.load(tmp_path / "b.pt", weights_only=True), state)


@every_kind
def test_a_training_state_keeps_its_nesting_and_its_values(place: Place, tmp_path: Path) -> None:
    """Model, optimizer, scheduler and position come out of a torch.save file as they went into the checkpoint."""
    state, root = training_state(1), place()
    dcp.save(state, storage_writer=CloudStorageWriter(f"{root}/dcp"))
    done = convert_checkpoint(f"{root}/dcp", f"{root}/all.pt")
    assert (done.source_form, done.target_form) == ("dcp", "torch")
    found = load_torch(f"{root}/all.pt", tmp_path)
    assert equal(found["model"], dict(state["model"]))
    assert equal(found["position"], state["position"])
    assert equal(found["optim"]["param_groups"], state["optim"]["param_groups"])
    convert_checkpoint(f"{root}/all.pt", f"{root}/again")
    assert equal(
        load_dcp(f"{root}/again", {"model": dict(state["model"]), "rng": state["rng"]})["model"], dict(state["model"])
    )


def test_what_is_made_is_what_torch_reads(tmp_path: Path) -> None:
    """torch's own reader opens the distributed checkpoint, and every checksum in it is recorded and right."""
    from dcp_cloud.checkpoint.verify import verify_checkpoint

    state = {"large": torch.randn(1500, 1000), "small": torch.arange(3), "epoch": 3}
    torch.save(state, tmp_path / "m.pt")
    convert_checkpoint(tmp_path / "m.pt", tmp_path / "dcp", max_shard_bytes=1_000_000)
    assert len(list((tmp_path / "dcp").glob("*.distcp"))) == 3
    found = {"large": torch.zeros(1500, 1000), "small": torch.zeros(3, dtype=torch.int64), "epoch": 0}
    dcp.load(found, storage_reader=FileSystemReader(str(tmp_path / "dcp")))
    assert equal(found, state)
    report = verify_checkpoint(open_store(f"file://{tmp_path}/dcp"))
    assert report.ok


def test_views_and_shared_storages_of_a_file_are_read(tmp_path: Path) -> None:
    """A file's tensors may be views of one storage, expanded or transposed; each becomes what it shows."""
    base = torch.arange(10_000.0).reshape(100, 100)
    state = OrderedDict(
        whole=base, row=base[3], block=base[2:50, 5:90], turned=base.t(), wide=torch.arange(4.0).expand(1000, 4),
        step=base.flatten()[::7], tied=base,
    )  # fmt: skip
    torch.save(state, tmp_path / "m.pt")
    convert_checkpoint(tmp_path / "m.pt", tmp_path / "m.safetensors")
    assert equal(load_file(tmp_path / "m.safetensors"), {name: value.contiguous() for name, value in state.items()})


def turned_and_cut() -> dict[str, torch.Tensor]:
    """Make tensors whose rows do not lie together, of 12 MiB and of a part of 24 MiB."""
    base = torch.arange(3 * 2**20, dtype=torch.float32)
    wide = torch.cat([base, -base]).reshape(1024, 6144)
    turned = base[: 1537 * 2046].clone().reshape(1537, 2046).t()
    return {"turned": turned, "columns": wide[:, 1000:4000], "tiny": wide[:2, :5]}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("source", "target"), [("m.pt", "m.safetensors"), ("m.pt", "dcp2"), ("dcp", "m.safetensors"), ("dcp", "n.pt")]
)
def test_tensors_that_are_read_in_many_strips_fit_into_little_memory(tmp_path: Path, source: str, target: str) -> None:
    """A transposed tensor and a view, each longer than max_inflight_bytes, are converted and not waited for."""
    state = turned_and_cut()
    torch.save(state, tmp_path / "m.pt")
    dcp.save(state, storage_writer=CloudStorageWriter(tmp_path / "dcp"))
    transfer = TransferConfig(max_inflight_bytes=8 * 2**20, part_size_bytes=2**20)
    convert_checkpoint(tmp_path / source, tmp_path / target, to="dcp" if target == "dcp2" else None, transfer=transfer)
    if target == "dcp2":
        found = load_dcp(f"{tmp_path}/dcp2", state)
    else:
        found = load_file(tmp_path / target) if target.endswith("safetensors") else torch.load(tmp_path / target)
    assert equal(found, {name: value.contiguous() for name, value in state.items()})


def test_a_small_view_of_a_long_tensor_costs_its_own_bytes(tmp_path: Path) -> None:
    """What lies before, behind and between the elements of a view is not fetched."""
    torch.save({"tiny": torch.randn(2000, 3000)[5:9, 7:12]}, tmp_path / "m.pt")
    events: list[TransferEvent] = []
    convert_checkpoint(tmp_path / "m.pt", tmp_path / "m.safetensors", on_event=events.append)
    read = [event for event in events if isinstance(event, RequestDone) and event.verb.startswith("get")]
    assert sum(event.size_bytes for event in read) < 120_000


def test_a_checkpoint_whose_name_is_like_a_files_is_found(place: Place) -> None:
    """Trainers call the directory of a distributed checkpoint ``epoch=1.ckpt``; a file of that name is still a file."""
    state, root = {"model": {"w": torch.arange(5.0)}, "epoch": 1}, place()
    dcp.save(state, storage_writer=CloudStorageWriter(at(root, "epoch=1.ckpt")))
    done = convert_checkpoint(at(root, "epoch=1.ckpt"), at(root, "m.pt"))
    assert (done.source_form, done.source) == ("dcp", at(root, "epoch=1.ckpt").partition("?")[0])
    convert_checkpoint(at(root, "m.pt"), at(root, "again"))
    assert equal(load_dcp(at(root, "again"), state), state)
    with pytest.raises(CheckpointNotFoundError):
        convert_checkpoint(at(root, "none.ckpt"), at(root, "x.safetensors"))


@pytest.mark.parametrize("only", ["model", "model."])
def test_a_part_is_named_without_its_dot(tmp_path: Path, only: str) -> None:
    """Whoever leaves out the dot gets the same names."""
    dcp.save({"model": {"w": torch.ones(3)}, "epoch": 1}, storage_writer=CloudStorageWriter(tmp_path / "dcp"))
    convert_checkpoint(tmp_path / "dcp", tmp_path / "m.safetensors", only=only)
    assert list(load_file(tmp_path / "m.safetensors")) == ["w"]
    convert_checkpoint(tmp_path / "dcp", tmp_path / "m.pt", only=only)
    assert list(torch.load(tmp_path / "m.pt")) == ["w"]


@every_cloud
def test_sharded_checkpoints_convert_between_clouds_and_files(place: Place, tmp_path: Path) -> None:
    """Saved by two ranks; merged into safetensors and a torch.save file on the same cloud; loaded by one, two, four."""
    root = place()
    run_ranks(2, jobs.save, at(root, "dcp"))
    model = convert_checkpoint(at(root, "dcp"), at(root, "hf"), only="model.", max_shard_bytes=2**22)
    assert (model.tensors, model.values) == (3, 0)
    expected = jobs.tensors()
    found = zeros_like(expected)
    dcp.load(found, storage_reader=CloudHuggingFaceStorageReader(at(root, "hf")))
    assert equal(found, expected)
    convert_checkpoint(at(root, "hf"), at(root, "file/m.pt"))
    for world_size in (1, 2, 4):
        assert run_ranks(world_size, jobs.load_torch_file, at(root, "file/m.pt"), False) == [[]] * world_size
    assert run_ranks(2, jobs.load_torch_file, at(root, "file/m.pt"), True) == [[], []]
    convert_checkpoint(at(root, "dcp"), tmp_path / "all.pt")
    assert equal(torch.load(tmp_path / "all.pt", weights_only=True), {"model": expected, "epoch": 3})


def at(root: str, name: str) -> str:
    place, _, query = root.partition("?")
    return f"{place}/{name}" + (f"?{query}" if query else "")


def test_shards_of_a_sharded_save_are_merged(tmp_path: Path) -> None:
    """``to="safetensors"`` makes whole files of shards."""
    state = {"a": torch.randn(30, 4), "b": torch.arange(5)}
    writer = CloudHuggingFaceStorageWriter(f"file://{tmp_path}/shards", save_distributed=True)
    dcp.save(state, storage_writer=writer)
    convert_checkpoint(tmp_path / "shards", tmp_path / "m", to="safetensors", max_shard_bytes=200)
    assert len(list((tmp_path / "m").glob("model-*-of-00002.safetensors"))) == 2


def test_memory_stays_within_its_bound(tmp_path: Path) -> None:
    """A tensor of 256 MiB passes through with less than 128 MiB, whatever the forms."""
    torch.save({"a": torch.ones(64, 2**20)}, tmp_path / "m.pt")
    for target in ("m.safetensors", "dcp"):
        (extra,) = run_ranks(1, jobs.extra_memory, f"{tmp_path}/m.pt", f"{tmp_path}/{target}", 64 * 2**20)
        assert extra < 128 * 2**20


def test_small_tensors_do_not_cost_a_request_each(tmp_path: Path) -> None:
    """Requests go by bytes, not by items."""
    state = {f"layer{i}": torch.full((10, 10), float(i)) for i in range(1500)}
    torch.save(state, tmp_path / "m.pt")
    events: list[TransferEvent] = []
    convert_checkpoint(tmp_path / "m.pt", "memory://m/dcp", on_event=events.append)
    assert len([event for event in events if not isinstance(event, (Planned, Progressed))]) < 60
    assert equal(load_dcp("memory://m/dcp", state), state)


def test_progress_adds_up(tmp_path: Path) -> None:
    """What is announced arrives, but for the little that the target's form adds."""
    torch.save({"a": torch.randn(2000, 1500), "n": 3}, tmp_path / "m.pt")
    events: list[TransferEvent] = []
    done = convert_checkpoint(tmp_path / "m.pt", tmp_path / "dcp", on_event=events.append)
    planned = [event for event in events if isinstance(event, Planned)]
    sent = sum(event.size_bytes for event in events if isinstance(event, Progressed))
    assert [(event.phase, event.size_bytes, event.items) for event in planned] == [("copy", 12_000_000, 2)]
    assert 12_000_000 <= sent == done.size_bytes < 12_010_000


@pytest.mark.parametrize("target", ["dcp", "m.safetensors", "hf"])
def test_ctrl_c_leaves_nothing(tmp_path: Path, target: str) -> None:
    """An interruption in mid-transfer ends the conversion, and there is nothing of the target."""
    torch.save({"a": torch.randn(4000, 3000)}, tmp_path / "m.pt")
    transfer = TransferConfig(part_size_bytes=5 * 2**20, max_inflight_bytes=20 * 2**20, max_concurrency=2)
    interrupted: list[TransferEvent] = []

    def interrupt(event: TransferEvent) -> None:
        if isinstance(event, Progressed) and not interrupted:
            interrupted.append(event)
            os.kill(os.getpid(), signal.SIGINT)

    form = "safetensors" if target == "hf" else None
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(tmp_path / "m.pt", tmp_path / "to" / target, to=form, transfer=transfer, on_event=interrupt)
    assert [path for path in (tmp_path / "to").rglob("*") if path.is_file()] == []


def test_the_readers_and_the_class_of_torch_fit_together(tmp_path: Path) -> None:
    """Values, moved readers and partial loads work as with every other reader."""
    torch.save({"a": torch.ones(3), "lr": 0.5, "nested": {"b": [torch.zeros(2), 7]}}, tmp_path / "m.pt")
    torch.save({"a": torch.full((3,), 2.0)}, tmp_path / "n.pth")
    reader = CloudTorchSaveReader(tmp_path / "m.pt")
    state: dict[str, Any] = {"lr": 0.0, "nested": {"b": [torch.ones(2), 0]}}
    dcp.load(state, storage_reader=reader)
    assert equal(state, {"lr": 0.5, "nested": {"b": [torch.zeros(2), 7]}})
    other = {"a": torch.zeros(3)}
    dcp.load(other, storage_reader=reader, checkpoint_id=str(tmp_path / "n.pth"))
    assert other["a"].tolist() == [2.0] * 3
