"""The fixtures that users import, in a project like theirs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, blocks_of

_FILE_NAME = re.compile(r"# (\w+\.py)\n")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What the page says to write, each block in the file that it names, and a test that looks at what is left."""
    for block in blocks_of(ROOT / "docs" / "testing.md"):
        if named := _FILE_NAME.match(block.code):
            (tmp_path / named[1]).write_text(block.code, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = ignore\n", encoding="utf-8")
    return tmp_path


def run_pytest(project: Path, **environment: str) -> str:
    """Run the project's tests as its owner does, without this repository's configuration."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA"]
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # the reader has none of this repository's plugins
    ran = subprocess.run(
        command, cwd=project, env=os.environ | environment, capture_output=True, text=True, timeout=170, check=False
    )
    return ran.stdout + ran.stderr


def test_the_fixtures_work_in_a_project_of_the_readers(project: Path) -> None:
    """The two files of the page are a test suite that passes, whatever the user's own credentials are."""
    out = run_pytest(project, AWS_PROFILE="not-there", AWS_SESSION_TOKEN="mine", HTTP_PROXY="http://127.0.0.1:9")
    assert "PASSED test_mine.py::test_my_checkpoint_comes_back[moto]" in out, out
    assert "PASSED test_mine.py::test_my_checkpoint_comes_back[fake-gcs]" in out, out
    assert "2 passed" in out, out


def test_a_bucket_and_its_environment_end_with_the_test(project: Path) -> None:
    """Two tests have two buckets; the first one's is gone, and so are the credentials, when it is over."""
    (project / "test_mine.py").write_text(
        """
import os

def test_one(bucket_uri, servers):
    bucket_uri("moto")
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "testing123"
    assert len(servers("moto").client().list_buckets()["Buckets"]) == 1

def test_two(servers):
    assert "AWS_SECRET_ACCESS_KEY" not in os.environ
    assert servers("moto").client().list_buckets()["Buckets"] == []

def test_three(servers):
    servers("azurite")
""",
        encoding="utf-8",
    )
    out = run_pytest(project, PATH="/nowhere", DCP_CLOUD_AZURITE="/nowhere", DCP_CLOUD_REQUIRE_SERVERS="", CI="")
    assert "2 passed, 1 skipped" in out, out
    assert "azurite is not installed" in out, out
