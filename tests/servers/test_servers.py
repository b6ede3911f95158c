from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from dcp_cloud.errors import DcpCloudError, MissingExtraError
from dcp_cloud.testing import AzuriteServer, ExternalServer, MotoServer, ObjectServer, external_servers
from dcp_cloud.testing.fixtures import running_server
from dcp_cloud.testing.servers import LOCAL_SERVERS, S3Access, ServerPool
from dcp_cloud.testing.servers.process import ServerEndedError, running


def put_and_get(server: ObjectServer, bucket: str, key: str, data: bytes) -> bytes:
    """Store and read one object with the provider's own SDK."""
    client = server.client()
    if server.scheme == "s3":
        client.put_object(Bucket=bucket, Key=key, Body=data)
        return client.get_object(Bucket=bucket, Key=key)["Body"].read()
    if server.scheme == "gs":
        client.bucket(bucket).blob(key).upload_from_string(data)
        return client.bucket(bucket).blob(key).download_as_bytes()
    blob = client.get_blob_client(bucket, key)
    blob.upload_blob(data)
    return blob.download_blob().readall()


def descendants() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.mark.parametrize("name", LOCAL_SERVERS)
def test_a_server_stores_an_object_and_leaves_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A started server takes and gives an object through the official SDK; stopped, it has left no process, no file."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = descendants()
    pool = ServerPool(os.environ)
    try:
        server = running_server(pool, name)
        server.create_bucket("test-bucket")
        assert put_and_get(server, "test-bucket", "a/b c", b"bytes") == b"bytes"
        server.delete_bucket("test-bucket")
        started = descendants() - before
    finally:
        pool.close()
    if not isinstance(server, ExternalServer):
        assert started
    assert descendants() - before == set()
    assert list(tmp_path.iterdir()) == []


def test_a_server_does_not_mind_the_users_own_clouds(monkeypatch: pytest.MonkeyPatch):
    """A profile in the user's environment, which the server's own SDK would look for, is not the server's."""
    monkeypatch.setenv("AWS_PROFILE", "not-there")
    with MotoServer() as server:
        monkeypatch.delenv("AWS_PROFILE")
        server.create_bucket("test-bucket")
        client = server.client()
        with pytest.raises(client.exceptions.NoSuchKey):  # moto's refusals go through its own client
            client.get_object(Bucket="test-bucket", Key="missing")


def test_a_server_ends_when_its_starter_is_killed(tmp_path: Path):
    """A server does not outlive the process that started it, even if that is killed."""
    script = (
        "import time; from dcp_cloud.testing import MotoServer; print(MotoServer().start(), flush=True); time.sleep(99)"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    with starter:
        assert starter.stdout is not None
        assert starter.stdout.readline()
        processes = psutil.Process(starter.pid).children(recursive=True)
        assert len(processes) == 2
        starter.kill()
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []


def test_a_server_ends_when_its_guard_is_killed(tmp_path: Path):
    """A server does not outlive its guard either."""
    with running(
        [sys.executable, "-c", "import time; time.sleep(99)"], name="sleeper", directory=str(tmp_path)
    ) as child:
        guard = psutil.Process(child.popen.pid)
        child.wait_until(lambda: bool(guard.children()))
        sleeper = guard.children()[0]
        child.wait_until(lambda: "sleep" in " ".join(sleeper.cmdline()))
        guard.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs([sleeper], timeout=20)
    assert alive == []


def test_a_server_that_ignores_sigterm_is_killed(tmp_path: Path):
    """A server that does not end when asked to is ended all the same."""
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); open('ready', 'w').close(); time.sleep(99)"
    before = descendants()
    with running([sys.executable, "-c", script], name="deaf", directory=str(tmp_path), grace_s=0.1) as child:
        child.wait_until((tmp_path / "ready").exists)
    assert child.popen.returncode == 128 + signal.SIGKILL
    assert descendants() - before == set()


def test_a_server_that_dies_early_shows_its_log(tmp_path: Path):
    """An answer on the port does not count when our own process has ended; the error holds what it said last."""
    with running(
        [sys.executable, "-c", "raise SystemExit('no such port')"], name="dead", directory=str(tmp_path)
    ) as child:
        child.popen.wait(20)
        with pytest.raises(ServerEndedError, match=r"exit code 1.*no such port"):
            child.wait_until(lambda: True)


def test_a_server_that_is_not_ready_in_time_is_an_error(tmp_path: Path):
    """Waiting for a server has an end."""
    sleeper = running([sys.executable, "-c", "import time; time.sleep(99)"], name="slow", directory=str(tmp_path))
    with sleeper as child, pytest.raises(DcpCloudError, match="not ready within"):
        child.wait_until(lambda: False, timeout_s=0.1)


def test_a_missing_server_names_its_install_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Starting what is not installed tells how to install it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DCP_CLOUD_AZURITE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingExtraError, match=r"npm install .* azurite@"):
        AzuriteServer().start()


def test_a_missing_server_is_a_failure_where_servers_are_required(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """In CI a server that is not there fails the test instead of skipping it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DCP_CLOUD_AZURITE", str(tmp_path))
    monkeypatch.setenv("DCP_CLOUD_REQUIRE_SERVERS", "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pytest.fail.Exception, match="azurite is not installed"):
        running_server(ServerPool({}), "azurite")
    monkeypatch.delenv("DCP_CLOUD_REQUIRE_SERVERS")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"npm install .* azurite@"):
        running_server(ServerPool({}), "azurite")


def test_a_server_that_nobody_knows_is_an_error():
    """A wrong name is told with the right ones, those of the environment among them."""
    pool = ServerPool({"DCP_CLOUD_TEST_MINIO_ENDPOINT": "http://127.0.0.1:9000"})
    with pytest.raises(DcpCloudError, match=r"no server is called 's3'(.|\n)*moto.*minio"):
        pool.get("s3")


def test_a_server_that_is_not_running_has_no_address():
    """Asking a stopped server for its address is an error, not an empty address."""
    with pytest.raises(DcpCloudError, match="moto is not running"):
        _ = MotoServer().endpoint_url


def test_external_servers_come_from_the_environment():
    """An endpoint in the environment stands for a server that is already running."""
    found = external_servers(
        {
            "DCP_CLOUD_TEST_MINIO_ENDPOINT": "http://127.0.0.1:9000",
            "DCP_CLOUD_TEST_GCS_ENDPOINT": "http://127.0.0.1:4443",
            "DCP_CLOUD_TEST_AZURE_ENDPOINT": "http://127.0.0.1:10000/devstoreaccount1",
        }
    )
    assert list(found) == ["minio", "fake-gcs", "azurite"]
    with found["minio"] as minio:
        uri = minio.uri("bucket", "a/b")
        assert uri == "s3://bucket/a/b?endpoint_url=http://127.0.0.1:9000&compatibility=minio"
        assert minio.environment["AWS_ACCESS_KEY_ID"] == "testing"
    assert external_servers({}) == {}


def test_an_s3_server_with_its_own_authority_says_so_in_the_environment():
    """The bundle of a private authority reaches the SDK through the variable that botocore reads."""
    access = S3Access(endpoint_url="https://127.0.0.1:1", ca_bundle="/ca.pem")
    assert access.environment["AWS_CA_BUNDLE"] == "/ca.pem"
