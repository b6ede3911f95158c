"""Models in safetensors files, saved by several ranks and loaded by other numbers of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dcp_cloud import consolidate_safetensors, open_store
from tests.checkpoint.conftest import every_cloud
from tests.checkpoint.states import equal
from tests.huggingface import jobs
from tests.support.ranks import run_ranks

Place = Callable[..., str]
needs_torchs_own = pytest.mark.skipif(
    not jobs.HAS_TORCHS_OWN, reason="this torch has no safetensors writer to compare with"
)


@every_cloud
def test_shards_and_what_is_made_of_them_load_on_any_number_of_ranks(place: Place, tmp_path: Path) -> None:
    """Saved by two ranks, each in a file of its own, merged by the save itself, loaded by one, two and four."""
    uri = place()
    mapping = {name: 1 + index % 2 for index, name in enumerate(jobs.PLACEMENTS)}
    options = {"save_distributed": True, "enable_consolidation": True, "fqn_to_index_mapping": mapping}
    run_ranks(2, jobs.save, uri, 3, options)
    assert equal(download_model(uri, tmp_path), jobs.full_tensors(3))
    for world_size in (1, 2, 4):
        assert run_ranks(world_size, jobs.load_both, uri, 3) == [[]] * world_size


def test_consolidation_stays_within_its_memory(tmp_path: Path) -> None:
    """A tensor of 256 MiB, of which each row is in two files, is merged with less than 128 MiB."""
    run_ranks(2, jobs.save_columns, f"file://{tmp_path}/m", 2**14, 2**12)
    (grown,) = run_ranks(1, jobs.consolidation_memory, f"file://{tmp_path}/m", f"file://{tmp_path}/out", 64 * 2**20)
    assert grown < 128 * 2**20


@needs_torchs_own
def test_torch_consolidates_what_we_save(tmp_path: Path) -> None:
    """The shard files carry what torch's consolidation needs (which takes floating point only)."""
    from torch.distributed.checkpoint._consolidate_hf_safetensors import consolidate_safetensors_files

    run_ranks(2, jobs.save_floats, f"file://{tmp_path}/shards")
    whole = jobs.floats()
    (tmp_path / "out").mkdir()
    consolidate_safetensors_files(str(tmp_path / "shards"), str(tmp_path / "out"), dict.fromkeys(whole, 1))
    assert equal(load_file(tmp_path / "out" / "model-00001-of-00001.safetensors"), whole)


@needs_torchs_own
def test_we_load_and_consolidate_what_torch_saves(tmp_path: Path) -> None:
    """Shard files of torch's writer load on other numbers of ranks; consolidated, integers and bools survive."""
    names = ["rows", "columns", "middle", "large", "tiny", "flags", "wide"]
    run_ranks(2, jobs.save_with_torch, str(tmp_path / "torch"), 5, names)
    for world_size in (1, 4):
        assert run_ranks(world_size, jobs.load_names, f"file://{tmp_path}/torch", 5, names) == [[]] * world_size
    consolidate_safetensors(f"file://{tmp_path}/torch", f"file://{tmp_path}/out")
    found = load_file(tmp_path / "out" / "model-00001-of-00001.safetensors")
    assert equal(found, {name: jobs.full_tensors(5)[name] for name in names})


def test_no_shard_replaces_another_of_its_name(tmp_path: Path) -> None:
    """Two shards of one tensor on one rank are both stored, each in a file of its own."""
    run_ranks(2, jobs.save_two_shards_of_one_name, f"file://{tmp_path}/m")
    assert len(list((tmp_path / "m").glob("shard-*.safetensors"))) == 4
    consolidate_safetensors(f"file://{tmp_path}/m", f"file://{tmp_path}/out")
    found = load_file(tmp_path / "out" / "model-00001-of-00001.safetensors")
    assert equal(found["weight"], torch.arange(24.0).reshape(8, 3))


def test_ranks_that_save_whole_tensors_do_not_overwrite_each_other(tmp_path: Path) -> None:
    """Without save_distributed every rank's tensors get a file of their own, and the index names them all."""
    run_ranks(2, jobs.save_whole_tensors_by_rank, f"file://{tmp_path}/m")
    found = download_model(f"file://{tmp_path}/m", tmp_path / "copy")
    assert sorted(found) == ["rank0", "rank1", "same"]
    assert found["rank0"].tolist() == [0.0] * 4
    assert found["rank1"].tolist() == [1.0] * 4


@every_cloud
def test_models_go_to_transformers_and_come_from_there(place: Place, tmp_path: Path) -> None:
    """``from_pretrained`` loads a sharded save after a download; what ``save_pretrained`` wrote loads sharded."""
    from transformers import LlamaForCausalLM

    uri = place()
    run_ranks(2, jobs.save_llama, uri, 7)
    download_model(uri, tmp_path / "ours")
    jobs.tiny_llama(7).config.save_pretrained(tmp_path / "ours")
    ours = LlamaForCausalLM.from_pretrained(tmp_path / "ours").state_dict()
    assert equal(dict(ours), dict(jobs.tiny_llama(7).state_dict()))

    published = [place("one-file"), place("with-index")]
    for target, shard_size in zip(published, ("5GB", "20KB"), strict=True):
        directory = tmp_path / shard_size
        jobs.tiny_llama(8).save_pretrained(directory, max_shard_size=shard_size)
        store = open_store(target)
        for path in directory.iterdir():
            store.put(path.name, [memoryview(path.read_bytes())])
    assert run_ranks(2, jobs.load_llama, published, 8) == [[], []]


def download_model(uri: str, directory: Path) -> dict[str, torch.Tensor]:
    """Copy the files that the index names, and the index, and open them with safetensors."""
    directory.mkdir(exist_ok=True)
    store = open_store(uri)
    index = store.get("model.safetensors.index.json", max_bytes=2**20).data
    (directory / "model.safetensors.index.json").write_bytes(index)
    found: dict[str, torch.Tensor] = {}
    weight_map = json.loads(index)["weight_map"]
    for name in set(weight_map.values()):
        (directory / name).write_bytes(store.get(name, max_bytes=2**30).data)
        found |= load_file(directory / name)
    assert sorted(found) == sorted(weight_map)
    return found
