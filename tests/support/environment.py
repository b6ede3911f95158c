"""The environment of a test: nothing of the user's own clouds, whatever the machine is set up for."""

from __future__ import annotations

import os

import pytest

_FOREIGN_PREFIXES = ("AWS_", "AZURE_", "GOOGLE_", "GCLOUD_", "CLOUDSDK_", "STORAGE_EMULATOR_", "BOTO_", "MSI_")
_FOREIGN_NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "GCE_METADATA_HOST", "IDENTITY_ENDPOINT")
# Which servers the tests find, and whether they must.
_OWN_PREFIXES = ("DCP_CLOUD_TEST_", "DCP_CLOUD_REQUIRE_SERVERS", "DCP_CLOUD_AZURITE")


def isolate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide credentials, configuration files, metadata services and proxies until the end of the test."""
    for name in list(os.environ):
        if name.upper().startswith(_FOREIGN_PREFIXES) or name.upper() in _FOREIGN_NAMES:
            monkeypatch.delenv(name)
    for name in list(os.environ):
        if name.startswith("DCP_CLOUD_") and not name.startswith(_OWN_PREFIXES):
            monkeypatch.delenv(name)
    monkeypatch.setenv("DCP_CLOUD_CONFIG", "")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "BOTO_CONFIG"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", os.path.join(os.devnull, "gcloud"))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
