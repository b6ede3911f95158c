"""Settings of the Azure store, and the credentials that they lead to."""

from __future__ import annotations

import pickle
import subprocess
import sys
from functools import partial
from types import MappingProxyType
from typing import Any

import pytest

from dcp_cloud.config import option_fields
from dcp_cloud.errors import ConfigError, MissingExtraError
from dcp_cloud.stores.azure_checksums import checksum_headers
from dcp_cloud.stores.azure_client import AzureClient
from dcp_cloud.stores.azure_config import AzureConfig
from dcp_cloud.stores.registry import open_store
from dcp_cloud.uri import StoreURI

_KEY = "c2VjcmV0IGtleQ=="
_STRING = f"DefaultEndpointsProtocol=https;AccountName=stringaccount;AccountKey={_KEY};EndpointSuffix=core.windows.net"
_SIGNATURE = "sv=2024-11-04&sp=rwdl&sig=c2VjcmV0"


def _credential() -> str:
    return _KEY


def _client(uri: str, monkeypatch: pytest.MonkeyPatch, config: AzureConfig | None = None, **environment: str) -> Any:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return AzureClient(StoreURI.parse(uri), config or AzureConfig()).container


@pytest.mark.parametrize(
    "settings",
    [
        {"account_url": "account.blob.core.windows.net"},
        {"account_url": "ftp://host"},
        {"connect_timeout_s": 0},
        {"max_pool_connections": 0},
        {"anonymous": True, "credential_factory": _credential},
        {"customer_key": bytes, "encryption_scope": "scope"},
        {"checksums": "MD5"},
        {"checksums": "sha256"},
        {"checksums": None},
        {"access_tier": "hot"},
        {"access_tier": "Archive"},
        {"encryption_scope": "größer"},
        {"encryption_scope": "a\r\nx-evil: 1"},
        {"metadata": {"step": 100}},
        {"metadata": {100: "step"}},
        {"metadata": {"run-id": "1"}},
        {"metadata": {"1st": "1"}},
        {"metadata": {"run": "ü"}},
        {"metadata": {"run": "a\r\nx-ms-blob-type: PageBlob"}},
        {"tags": {"step": 100}},
        {"tags": {"a!": "1"}},
        {"tags": {"a": "ü"}},
        {"tags": {"": "1"}},
        {"tags": {"a" * 129: "1"}},
        {"tags": {"a": "1" * 257}},
        {"tags": {f"t{number}": "" for number in range(11)}},
    ],
)
def test_settings_are_checked(settings: dict[str, Any]):
    """A setting that cannot work is refused when it is made."""
    with pytest.raises(ConfigError):
        AzureConfig(**settings)


def test_settings_travel_whatever_mapping_they_were_given():
    """Settings go to worker processes; what a function may hold is not shown."""
    texts = MappingProxyType({"job_1": "a-b c"})
    config = AzureConfig(tags=texts, metadata=texts, access_tier="Cold", credential_factory=partial(str, "topsecret"))
    copy = pickle.loads(pickle.dumps(config))
    assert (copy.tags, copy.metadata, copy.access_tier) == (dict(texts), dict(texts), "Cold")
    assert "topsecret" not in repr(config)


def test_a_signature_does_not_belong_into_the_url():
    """Settings end up in logs: one that would hold a signature is refused, and not repeated."""
    with pytest.raises(ConfigError) as caught:
        AzureConfig(account_url=f"https://account.blob.core.windows.net/?{_SIGNATURE}")
    assert "c2VjcmV0" not in str(caught.value)


def test_what_holds_secrets_or_mappings_is_no_option():
    """Nothing of that can stand in a URI."""
    assert not {"customer_key", "credential_factory", "tags", "metadata"} & set(option_fields(AzureConfig))
    assert {"account", "account_url", "access_tier", "read_timeout", "checksums"} <= set(option_fields(AzureConfig))


def test_the_settings_need_no_sdk():
    """Reading the settings, or the package itself, imports nothing of Azure."""
    code = "import sys, dcp_cloud; dcp_cloud.AzureConfig(); sys.exit('azure' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_connection_string_says_it_all(monkeypatch: pytest.MonkeyPatch):
    """It names account, address and key."""
    container = _client("az://box", monkeypatch, AZURE_STORAGE_CONNECTION_STRING=_STRING)
    assert container.url == "https://stringaccount.blob.core.windows.net/box"
    assert container.credential.account_key == _KEY


@pytest.mark.parametrize(
    ("url", "account"),
    [
        ("https://mine.blob.core.windows.net", "mine"),
        ("https://mine-secondary.blob.core.windows.net/", "mine"),
        ("https://mine.privatelink.blob.core.windows.net", "mine"),
        ("https://mine.z01.blob.storage.azure.net", "mine"),
        ("https://mine.blob.localhost:10000", "mine"),
        ("https://127.0.0.1:10000/mine", "mine"),
        ("https://localhost:10000/mine/", "mine"),
        ("https://azurite:10000/mine", "mine"),
        ("https://[::1]:10000/mine", "mine"),
        ("https://blobs.example.com", None),
    ],
)
@pytest.mark.parametrize("environment", ["mine", "other"])
@pytest.mark.parametrize("signs", ["AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN"])
def test_an_address_tells_whose_credentials_it_gets(
    monkeypatch: pytest.MonkeyPatch, url: str, account: str | None, environment: str, signs: str
):
    """A key and a signature go to the account that they belong to; where an address names none, to that address."""
    config = AzureConfig(account_url=url)
    value = _KEY if signs == "AZURE_STORAGE_KEY" else _SIGNATURE
    container = _client("az://box", monkeypatch, config, **{"AZURE_STORAGE_ACCOUNT": environment, signs: value})
    is_passed_over = type(container.credential).__name__ == "DefaultAzureCredential"
    assert is_passed_over == (account not in (None, environment))
    assert (_SIGNATURE in container.url) == (signs == "AZURE_STORAGE_SAS_TOKEN" and not is_passed_over)


def test_an_account_that_is_given_owns_the_address(monkeypatch: pytest.MonkeyPatch):
    """A name of one's own for the endpoint does not hide whose it is."""
    config = AzureConfig(account="mine", account_url="https://alias.blob.example.com")
    container = _client("az://box", monkeypatch, config, AZURE_STORAGE_ACCOUNT="mine", AZURE_STORAGE_KEY=_KEY)
    assert container.credential.account_key == _KEY


@pytest.mark.parametrize("uri", ["az://box", "abfss://box@other.dfs.core.windows.net/run"])
def test_credentials_of_another_account_are_passed_over(monkeypatch: pytest.MonkeyPatch, uri: str):
    """A key of one account is never sent to another one."""
    container = _client(
        uri,
        monkeypatch,
        AzureConfig(account="other"),
        AZURE_STORAGE_CONNECTION_STRING=_STRING,
        AZURE_STORAGE_ACCOUNT="third",
        AZURE_STORAGE_KEY=_KEY,
        AZURE_STORAGE_SAS_TOKEN=_SIGNATURE,
    )
    assert container.url == "https://other.blob.core.windows.net/box"
    assert type(container.credential).__name__ == "DefaultAzureCredential"


def test_a_key_belongs_to_the_account_of_the_environment(monkeypatch: pytest.MonkeyPatch):
    """Account and key from the environment are enough."""
    container = _client("az://box", monkeypatch, AZURE_STORAGE_ACCOUNT="mine", AZURE_STORAGE_KEY=_KEY)
    assert container.url == "https://mine.blob.core.windows.net/box"
    assert container.credential.account_key == _KEY


def test_a_signature_goes_into_the_query(monkeypatch: pytest.MonkeyPatch):
    """A shared access signature works with or without its question mark."""
    for text in (_SIGNATURE, f"?{_SIGNATURE}"):
        container = _client("az://box", monkeypatch, AZURE_STORAGE_ACCOUNT="mine", AZURE_STORAGE_SAS_TOKEN=text)
        assert container.url == f"https://mine.blob.core.windows.net/box?{_SIGNATURE}"


def test_anonymous_takes_no_credential(monkeypatch: pytest.MonkeyPatch):
    """Whatever the environment holds."""
    config = AzureConfig(account="mine", anonymous=True)
    container = _client("az://box", monkeypatch, config, AZURE_STORAGE_ACCOUNT="mine", AZURE_STORAGE_KEY=_KEY)
    assert container.credential is None


def test_a_factory_wins(monkeypatch: pytest.MonkeyPatch):
    """What the caller passes comes before the environment."""
    config = AzureConfig(account="mine", credential_factory=lambda: {"account_name": "mine", "account_key": "AAAA"})
    container = _client("az://box", monkeypatch, config, AZURE_STORAGE_CONNECTION_STRING=_STRING)
    assert container.credential.account_key == "AAAA"


def test_an_unknown_account_is_an_error(monkeypatch: pytest.MonkeyPatch):
    """The message names the ways to say it."""
    with pytest.raises(ConfigError, match=r"account=.*AZURE_STORAGE_ACCOUNT"):
        _client("az://box", monkeypatch)


def test_a_broken_connection_string_is_not_repeated(monkeypatch: pytest.MonkeyPatch):
    """It holds a key."""
    with pytest.raises(ConfigError) as caught:
        _client("az://box", monkeypatch, AZURE_STORAGE_CONNECTION_STRING=f"AccountKey={_KEY};nonsense")
    assert _KEY not in str(caught.value)


def test_a_store_pickles_as_its_settings(monkeypatch: pytest.MonkeyPatch):
    """The other process finds its own credentials."""
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", _STRING)
    store = open_store("az://box", config=AzureConfig(credential_factory=_credential, read_timeout_s=3.0))
    pickled = pickle.dumps(store)
    assert _KEY.encode() not in pickled
    assert pickle.loads(pickled).client.config == store.client.config  # type: ignore[attr-defined]


def test_a_customer_key_has_32_bytes():
    """Another length is refused before anything is sent."""
    client = AzureClient(StoreURI.parse("az://box"), AzureConfig(customer_key=bytes))
    with pytest.raises(ConfigError, match="32-byte"):
        client.encryption()


def test_crc64_without_its_package_names_it(monkeypatch: pytest.MonkeyPatch):
    """The message is the command to run."""
    monkeypatch.setitem(sys.modules, "awscrt.checksums", None)
    with pytest.raises(MissingExtraError, match="pip install awscrt"):
        checksum_headers([memoryview(b"1")], "crc64")


def test_signing_in_without_its_package_names_it(monkeypatch: pytest.MonkeyPatch):
    """azure-identity is needed by those only who have neither key nor signature."""
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    with pytest.raises(MissingExtraError, match="azure-identity"):
        _client("az://box", monkeypatch, AZURE_STORAGE_ACCOUNT="mine")
