from __future__ import annotations

import ast
import inspect
import pickle
from pathlib import Path

import pytest

import dcp_cloud

NAMES = [
    "AzureConfig",
    "AzureStorageReader",
    "AzureStorageWriter",
    "CheckpointManager",
    "CloudLoadPlanner",
    "CloudStorageReader",
    "CloudStorageWriter",
    "DcpCloudError",
    "GCSConfig",
    "GCSStorageReader",
    "GCSStorageWriter",
    "ObjectStore",
    "RetryConfig",
    "S3Config",
    "S3StorageReader",
    "S3StorageWriter",
    "StoreURI",
    "TransferConfig",
    "TransferSummary",
    "open_store",
]


def test_the_public_names_are_these() -> None:
    """Removing or adding a public name is a decision, not an accident."""
    assert list(dcp_cloud.__all__) == sorted(dcp_cloud.__all__)
    assert set(NAMES) <= set(dcp_cloud.__all__)


@pytest.mark.parametrize("name", dcp_cloud.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    """A name that is offered can be had, pickles by its home, and says what it is."""
    found = getattr(dcp_cloud, name)
    assert found.__name__ == name
    assert inspect.getdoc(found)
    assert pickle.loads(pickle.dumps(found)) is found
    assert name in dir(dcp_cloud)


def test_type_checkers_see_the_same_names() -> None:
    """What is loaded on first use is imported for type checkers, from the same home."""
    tree = ast.parse(Path(dcp_cloud.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == dict(dcp_cloud._HOMES)
    assert set(seen) == set(dcp_cloud.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    """hasattr and ``from dcp_cloud import x`` work as everywhere."""
    assert not hasattr(dcp_cloud, "no_such_name")
    with pytest.raises(ImportError):
        exec("from dcp_cloud import no_such_name")


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(("Writer", "Reader"))])
def test_writers_and_readers_take_what_is_documented(name: str) -> None:
    """The URI comes first; everything else is given by name."""
    first, *rest = inspect.signature(getattr(dcp_cloud, name)).parameters.values()
    assert first.name == "uri"
    assert {"transfer"} <= {parameter.name for parameter in rest}
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in rest)
