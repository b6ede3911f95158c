"""``dcp-cloud config show``."""

from __future__ import annotations

import json

from tests.cli.conftest import compare_golden


def test_every_setting_says_where_it_comes_from(run, monkeypatch):
    """URI, environment and default stand beside each value."""
    monkeypatch.setenv("DCP_CLOUD_PART_SIZE", "32MiB")
    monkeypatch.setenv("DCP_CLOUD_GCS_STORAGE_CLASS", "NEARLINE")
    ran = run("config", "show", "gs://bucket/run?max_concurrency=4")
    assert (ran.code, ran.err) == (0, "")
    compare_golden("config-show.txt", ran.out)


def test_the_document_for_scripts(run, monkeypatch, tmp_path):
    """With --json values are numbers, and the file is named whether it is there or not."""
    monkeypatch.setenv("DCP_CLOUD_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "config.toml").write_text("[default]\nmax_attempts = 2")
    document = json.loads(run("config", "show", "--json").out)
    assert document["file"] == {"path": str(tmp_path / "config.toml"), "exists": True}
    assert document["settings"]["max_attempts"]["value"] == 2
    assert document["settings"]["max_attempts"]["from"].startswith("file: ")
    assert document["settings"]["part_size_bytes"] == {"value": 16 * 2**20, "from": "default"}


def test_a_misspelt_variable_ends_with_two(run, monkeypatch):
    """A name that nobody knows is wrong use, on standard error, with the right name."""
    monkeypatch.setenv("DCP_CLOUD_MAX_CONCURENCY", "4")
    ran = run("config", "show")
    assert (ran.code, ran.out) == (2, "")
    assert "DCP_CLOUD_MAX_CONCURRENCY" in ran.err


def test_a_misspelt_option_ends_with_two(run):
    """An option of the URI that nobody reads is refused here as by every other command."""
    ran = run("config", "show", "s3://bucket/run?regoin=eu")
    assert (ran.code, ran.out) == (2, "")
    assert "region" in ran.err


def test_values_are_no_markup_and_no_secrets(run, monkeypatch):
    """What a setting holds is shown as it is, but for a password in a URL; every provider's settings are JSON."""
    monkeypatch.setenv("DCP_CLOUD_GCS_ENDPOINT_URL", "http://me:hidden@storage:4443")
    ran = run("config", "show", "gs://bucket/run?storage_class=[/]")
    assert ran.code == 0
    assert "[/]" in ran.out
    assert "storage:4443" in ran.out
    assert "hidden" not in ran.out
    for uri in ("s3://bucket/run", "gs://bucket/run", "az://container/run?account=a", "file:///tmp/x"):
        document = run("config", "show", uri, "--json").out
        assert json.loads(document)["schema"] == "dcp-cloud/config"
        assert "hidden" not in document
