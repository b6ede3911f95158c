"""Executing a page from top to bottom, in a process of its own."""

from __future__ import annotations

import linecache
import os
import sys
import tempfile
import types
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from typer.testing import CliRunner

import dcp_cloud
from dcp_cloud.cli.app import build_app
from tests.docs.blocks import Block, to_execute


def execute_page(page: Path, prepared: tuple[str, ...]) -> None:
    """Execute the blocks of a page in order, in one namespace and one directory."""
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        reader = types.ModuleType("reader")
        sys.modules["reader"] = reader
        vars(reader).update(_what_the_reader_has())
        for uri in prepared:
            dcp.save(vars(reader)["state_dict"], storage_writer=dcp_cloud.CloudStorageWriter(uri))
        for block in to_execute(page):
            if block.language == "python":
                _execute_python(block, vars(reader))
            else:
                _execute_commands(block)
        os.chdir("/")


def _what_the_reader_has() -> dict[str, object]:
    """What pages may name without having made it: the reader's own model, and what an earlier block imports."""

    class MyConfig:
        """A type of the reader's."""

    model = torch.nn.Linear(16, 16)
    state_dict = {"model": model.state_dict(), "step": 1}
    path = os.path.abspath("torch-wrote-this")
    dcp.save(state_dict, storage_writer=dcp.FileSystemWriter(path), no_dist=True)
    return {
        "CloudLoadPlanner": dcp_cloud.CloudLoadPlanner,
        "CloudStorageReader": dcp_cloud.CloudStorageReader,
        "CloudStorageWriter": dcp_cloud.CloudStorageWriter,
        "FileSystemReader": dcp.FileSystemReader,
        "MyConfig": MyConfig,
        "dcp": dcp,
        "model": model,
        "path": path,
        "state_dict": state_dict,
        "torch": torch,
        "train_one_step": lambda: 0.5,
        "uri": "memory://reader/run/step-1",
    }


def _execute_python(block: Block, namespace: dict[str, object]) -> None:
    name = f"{block.page}:{block.line}"
    linecache.cache[name] = (len(block.code), None, block.code.splitlines(keepends=True), name)  # for tracebacks
    exec(compile(block.code, name, "exec"), namespace)


def _execute_commands(block: Block) -> None:
    for arguments in block.dcp_cloud_calls():
        result = CliRunner().invoke(build_app(), arguments, prog_name="dcp-cloud", env={"COLUMNS": "100"})
        assert result.exit_code == 0, f"{block.page}:{block.line}: dcp-cloud {' '.join(arguments)}\n{result.output}"
