"""Every block of code on every page works."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from dcp_cloud.cli.app import build_app
from dcp_cloud.config import TransferConfig
from dcp_cloud.settings import gather_settings
from dcp_cloud.stores.azure_config import AzureConfig
from dcp_cloud.stores.gcs_config import GCSConfig
from dcp_cloud.stores.s3_config import S3Config
from dcp_cloud.testing import ObjectServer
from tests.docs.blocks import PAGES, ROOT, SHELLS, Block, blocks_of, to_execute
from tests.docs.jobs import execute_page
from tests.support.ranks import RankError, run_ranks

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_BLOCKS = [block for page in PAGES for block in blocks_of(page)]
# What stands for the clouds, and how its settings are called in the environment.
_CLOUDS = {"s3": ("moto", "S3"), "gs": ("fake-gcs", "GCS"), "az": ("azurite", "AZURE")}
_BUCKET = re.compile(r"\b(s3|gs|az)://([a-z0-9-]+)/")
# Checkpoints that pages take for granted, and the words by which one knows that a page does.
_PREPARED = {
    "s3://bucket/run/step-50": "s3://bucket/run",
    "s3://bucket/run/step-100": "s3://bucket/run",
    "s3://bucket/run/step-200": "s3://bucket/run/step-200",
    "s3://bucket/run/other": "s3://bucket/run/other",
    "gs://bucket/run/step-100": "ls gs://bucket/run",
    "gs://bucket/after": "gs://bucket/after",
    "az://container/run/step-100": "ls az://container/run",
    "./checkpoints/step-100": "ls ./checkpoints",
    "./before": "diff ./before",
}
# Blocks of commands that are understood but not executed have one of these in them.
_PARSED_ONLY = re.compile(
    r"^(?:pip|npm|git|export|aws|az|gcloud|PYTHON=\S+|node|\S*python) "  # installs, clouds' own tools, variables
    r"|^\./scripts/"  # minutes
    r"|^dcp-cloud (?:bench|demo|serve-emulators|rm|--show-completion)\b"  # minutes, questions, the shell
    r"|^dcp-cloud (?:convert|inspect \S+ --html|ls 's3:\S+endpoint_url)\b",  # files and a server of one's own
    re.MULTILINE,
)
# Blocks of Python that are left out; each says why on its page.
_LEFT_OUT = 0


def blocks(*languages: str) -> pytest.MarkDecorator:
    """All blocks in some languages."""
    found = [block for block in _BLOCKS if block.language in languages]
    assert found
    return pytest.mark.parametrize("block", found, ids=lambda block: f"{block.page}:{block.line}")


def test_every_block_is_of_a_language_that_is_tested() -> None:
    """What stands between fences is code that is tested, or plainly text."""
    tested = {"python", "json", "toml", *SHELLS}
    assert {block.language for block in _BLOCKS} <= tested | {"text", ""}


def test_blocks_that_are_not_run_are_few_and_say_why() -> None:
    """Nobody leaves a block out without changing the number here."""
    left_out = [f"{block.page}:{block.line}: {block.why_not_run}" for block in _BLOCKS if block.why_not_run]
    assert len(left_out) == _LEFT_OUT, left_out
    assert all(block.language == "python" for block in _BLOCKS if block.why_not_run)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if to_execute(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_a_page_runs_from_top_to_bottom(page: Path, clouds: Callable[[Path], None]) -> None:
    """The Python of a page, and the commands that it marks, run in order, with local servers for the clouds."""
    clouds(page)
    code = _code(page)
    prepared = tuple(place for place, words in _PREPARED.items() if words in code)
    run_ranks(1, execute_page, page, prepared)


def test_what_does_not_work_on_a_page_is_told(tmp_path: Path) -> None:
    """The rule above looks at something: blocks are executed, and a wrong one is named."""
    page = tmp_path / "page.md"
    page.write_text("# P\n\n```python\nx = 1\n```\n\n```python\nx / 0\n```\n", encoding="utf-8")
    with pytest.raises(RankError, match=r"page\.md:8.*\n.*x / 0(.*\n)*.*ZeroDivisionError"):
        run_ranks(1, execute_page, page, ())
    page.write_text("<!-- run -->\n\n```console\n$ dcp-cloud ls ./nowhere\n```\n", encoding="utf-8")
    with pytest.raises(RankError, match=r"dcp-cloud ls \./nowhere"):
        run_ranks(1, execute_page, page, ())


@blocks(*SHELLS)
def test_commands_exist(block: Block) -> None:
    """What is typed is understood: the shell's grammar, commands and options of dcp-cloud, scripts, extras."""
    root: Any = typer.main.get_command(build_app())
    for arguments in block.dcp_cloud_calls():
        _parse(root, arguments)
    for script in re.findall(r"(?<![\w/])(?:\./)?((?:scripts|examples|\.ci)/[\w.-]+)", block.code):
        assert (ROOT / script).exists(), script
    for wanted in re.findall(r"(?:dcp-cloud|\.)\[([\w,]+)\]", block.code):
        assert set(wanted.split(",")) <= _extras(), wanted
    script = "\n".join(block.commands) if block.language == "console" else block.code
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@blocks(*SHELLS)
def test_commands_are_executed_if_they_can_be(block: Block) -> None:
    """A block of commands is executed, or has a command of a kind that docs/architecture.md names."""
    assert block.comment == "run" or any(map(_PARSED_ONLY.search, block.commands)), block.commands


@blocks("json")
def test_json_is_json(block: Block) -> None:
    """It can be copied into a console of the cloud."""
    assert json.loads(block.code)


@blocks("toml")
def test_settings_files_are_understood(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every profile of a settings file on a page names settings that there are."""
    path = tmp_path / "config.toml"
    path.write_text(block.code, encoding="utf-8")
    monkeypatch.setenv("DCP_CLOUD_CONFIG", str(path))
    for profile in tomllib.loads(block.code):
        monkeypatch.setenv("DCP_CLOUD_PROFILE", profile)
        records = {None: TransferConfig, "s3": S3Config, "gcs": GCSConfig, "azure": AzureConfig}
        found = [gather_settings(record, {}, section=section) for section, record in records.items()]
        assert any(found)


@pytest.fixture
def clouds(servers: Callable[[str], ObjectServer], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Put local servers, with the buckets that a page names, in place of the clouds."""
    made: list[tuple[ObjectServer, str]] = []

    def stand_in(page: Path) -> None:
        named = sorted(set(_BUCKET.findall(_code(page))))
        for scheme in {scheme for scheme, _ in named}:
            name, section = _CLOUDS[scheme]
            server = servers(name)
            for variable, value in server.environment.items():
                monkeypatch.setenv(variable, value)
            for option, value in server.access.options.items():
                monkeypatch.setenv(f"DCP_CLOUD_{section}_{option.upper()}", value)
        for scheme, bucket in named:
            server = servers(_CLOUDS[scheme][0])
            server.create_bucket(bucket)
            made.append((server, bucket))

    yield stand_in
    for server, bucket in made:
        server.delete_bucket(bucket)


def _code(page: Path) -> str:
    return "\n".join(block.code for block in to_execute(page))


def _parse(group: Any, arguments: list[str]) -> None:
    """Let the real command line read the arguments of a command, and stop before the command itself."""
    try:
        context = group.make_context("dcp-cloud", list(arguments))
    except SystemExit as ended:  # --show-completion and the like answer at once
        if ended.code:
            raise
        return
    with context:
        name, command, rest = group.resolve_command(context, arguments)
    if hasattr(command, "commands"):
        _parse(command, rest)
    elif "--help" not in rest:
        command.make_context(name, rest)


def _extras() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return set(project["project"]["optional-dependencies"])
