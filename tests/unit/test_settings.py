"""Settings of the environment and of the file: their order, and what is refused."""

from __future__ import annotations

import pytest

from dcp_cloud import CloudStorageWriter, S3Config, TransferConfig, open_store
from dcp_cloud.config import MIB
from dcp_cloud.errors import ConfigError, UnknownOptionError
from dcp_cloud.settings import gather_settings, merge_settings, settings_file

_FILE = """
[default]
part_size = "32MiB"
max_attempts = 3
[default.s3]
region = "eu-west-1"
dual_stack = true

[other]
part_size_bytes = 8388608
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A settings file that is in force."""
    path = tmp_path / "config.toml"
    path.write_text(_FILE)
    monkeypatch.setenv("DCP_CLOUD_CONFIG", str(path))
    return path


def test_the_order_is_argument_uri_environment_file_default(file, monkeypatch):
    """Each layer wins over those below it, and tells where its value came from."""
    monkeypatch.setenv("DCP_CLOUD_PART_SIZE", "48MiB")
    monkeypatch.setenv("DCP_CLOUD_MAX_CONCURRENCY", "7")
    argument = TransferConfig(max_concurrency=9)
    merged = merge_settings(argument, TransferConfig, {"part_size_bytes": "64MiB"})
    assert (merged.part_size_bytes, merged.max_concurrency, merged.retry.max_attempts) == (64 * MIB, 9, 3)
    merged = merge_settings(None, TransferConfig, {})
    assert (merged.part_size_bytes, merged.max_concurrency) == (48 * MIB, 7)
    monkeypatch.delenv("DCP_CLOUD_PART_SIZE")
    found = gather_settings(TransferConfig, {"max_concurrency": "2"})
    assert {name: setting.origin for name, setting in found.items()} == {
        "part_size_bytes": f"file: {file} [default]",
        "max_attempts": f"file: {file} [default]",
        "max_concurrency": "URI",
    }


def test_writers_and_stores_obey(file, monkeypatch):
    """What the environment and the file say reaches the writer and the provider's store."""
    monkeypatch.setenv("DCP_CLOUD_MAX_INFLIGHT", "64MiB")
    monkeypatch.setenv("DCP_CLOUD_S3_ENDPOINT_URL", "http://127.0.0.1:1")
    transfer = CloudStorageWriter("memory://settings/a")._location.transfer
    assert (transfer.part_size_bytes, transfer.max_inflight_bytes) == (32 * MIB, 64 * MIB)
    with pytest.raises(ConfigError, match="choose among Amazon's endpoints"):  # dual_stack comes from the file
        open_store("s3://bucket/prefix")


def test_a_provider_s_settings_are_its_own(file, monkeypatch):
    """The variables and the table of one provider do not reach another."""
    monkeypatch.setenv("DCP_CLOUD_AZURE_ENDPOINT", "http://127.0.0.1:1")
    merged = merge_settings(None, S3Config, {}, section="s3")
    assert (merged.region, merged.dual_stack, merged.endpoint_url) == ("eu-west-1", True, None)


def test_a_profile_is_chosen_by_name(file, monkeypatch):
    """DCP_CLOUD_PROFILE names the table; the default one is then out of force."""
    monkeypatch.setenv("DCP_CLOUD_PROFILE", "other")
    merged = merge_settings(None, TransferConfig, {})
    assert (merged.part_size_bytes, merged.retry.max_attempts) == (8 * MIB, TransferConfig().retry.max_attempts)


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("DCP_CLOUD_PART_SIZ", "1MiB", "DCP_CLOUD_PART_SIZE"),
        ("DCP_CLOUD_PROFILE", "defualt", "default"),
        ("DCP_CLOUD_PART_SIZE", "many", "64MiB"),
    ],
)
def test_a_wrong_variable_is_refused(file, monkeypatch, name, value, hint):
    """A misspelt variable, a missing profile and a bad value are errors that say what is right."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        merge_settings(None, TransferConfig, {})
    assert hint in (caught.value.hint or "")
    assert name in str(caught.value) or value in str(caught.value)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[default]\npart_siz = 1", UnknownOptionError),
        ("[default]\npart_size = [1]", ConfigError),
        ("default = 1", ConfigError),
        ("[default", ConfigError),
    ],
)
def test_a_wrong_file_is_refused(file, text, kind):
    """Each defect of the file is an error that names it."""
    file.write_text(text)
    with pytest.raises(kind) as caught:
        merge_settings(None, TransferConfig, {})
    assert str(file) in str(caught.value)


def test_a_bad_value_of_the_file_says_where_it_stands(file):
    """A number out of range is traced to its line's table."""
    file.write_text("[default]\nmax_concurrency = 0")
    with pytest.raises(ConfigError, match=r"it comes from file: .*config\.toml \[default\]"):
        merge_settings(None, TransferConfig, {})


def test_which_file(tmp_path, monkeypatch):
    """A named file must exist, the usual one need not, an empty name switches files off."""
    assert settings_file() is None
    monkeypatch.setenv("DCP_CLOUD_CONFIG", str(tmp_path / "missing.toml"))
    with pytest.raises(ConfigError, match="DCP_CLOUD_CONFIG asks for it"):
        merge_settings(None, TransferConfig, {})
    monkeypatch.delenv("DCP_CLOUD_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert settings_file() == tmp_path / "dcp-cloud" / "config.toml"
    assert merge_settings(None, TransferConfig, {}) == TransferConfig()


def test_an_empty_variable_sets_nothing(file, monkeypatch):
    """What a template of a job leaves empty is not set: the file holds."""
    file.write_text('[default]\npart_size = "8MiB"')
    monkeypatch.setenv("DCP_CLOUD_PART_SIZE", "")
    assert merge_settings(None, TransferConfig, {}).part_size_bytes == 8 * 2**20
