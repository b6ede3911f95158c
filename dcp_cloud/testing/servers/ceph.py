"""Ceph's object gateway: a real S3 server, ready in about a second, as any user, without systemd.

One monitor, one storage daemon and the gateway run as children under one directory. It checks credentials and body
hashes and has conditional writes; what it has not: flexible checksums, ``If-None-Match`` at the completion of a
multipart upload, and bodies with trailing checksums over TLS (it answers 411, so set boto3's
``request_checksum_calculation`` to ``when_required``).
"""

from __future__ import annotations

import os
import shutil
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

from dcp_cloud.testing.servers.access import Access, S3Access
from dcp_cloud.testing.servers.base import ObjectServer
from dcp_cloud.testing.servers.process import ChildProcess, free_port, http_status, run_tool, running

_PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
_INSTALL = "apt-get install --no-install-recommends ceph-mon ceph-osd radosgw ceph-common"

_CONF = """\
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon_port}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
keyring = {directory}/keyring
run dir = {directory}/run
admin socket = {directory}/run/$name.asok
log file = {directory}/log/$name.log
pid file = {directory}/run/$name.pid
mon cluster log file = {directory}/log/cluster.log
crash dir = {directory}/crash
ms bind msgr1 = false
ms bind ipv6 = false
auth allow insecure global id reclaim = false
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon warn on pool no redundancy = false
mon data avail crit = 0
# These two turn a start of 11 s into one of 1 s.
paxos propose interval = 0.05
paxos min wait = 0.01
[mon.a]
public addr = v2:127.0.0.1:{mon_port}
mon data = {directory}/mon
[osd.0]
osd data = {directory}/osd
osd objectstore = {objectstore}
osd class load list = *
osd class default list = *
osd memory target = 939524096
memstore device bytes = 8589934592
bluestore block size = 21474836480
bluestore block create = true
bluestore fsck on mkfs = false
[client.rgw]
# Without tcp_nodelay every small read takes 40 ms.
rgw frontends = beast {frontend} tcp_nodelay=1
# The default is two hours: deleted and overwritten data would pile up.
rgw gc obj min wait = 5
rgw gc processor period = 5
rgw gc processor max time = 60
rgw enable usage log = false
debug rgw = 0/0
"""

_KEYS = (
    ("mon.", ("mon", "allow *")),
    ("client.admin", ("mon", "allow *", "osd", "allow *", "mgr", "allow *")),
    ("osd.0", ("mon", "allow profile osd", "osd", "allow *", "mgr", "allow profile osd")),
    ("client.rgw", ("mon", "allow rw", "osd", "allow rwx")),
)


class CephServer(ObjectServer):
    """Ceph RGW with one user, who owns whatever the tests make.

    Args:
        tls: Serve https, with a certificate whose authority is in ``access.ca_bundle`` and the environment.
        objectstore: ``memstore`` starts in 1 s and keeps everything in memory, 8 GiB at most; ``bluestore`` takes
            7 s and keeps it in a file of up to 20 GiB: for large objects and for measuring.
    """

    def __init__(self, *, tls: bool = False, objectstore: Literal["memstore", "bluestore"] = "memstore") -> None:
        super().__init__()
        self._tls = tls
        self._objectstore = objectstore

    @property
    def name(self) -> str:
        """``ceph`` or ``ceph-tls``."""
        return "ceph-tls" if self._tls else "ceph"

    def missing(self) -> str | None:
        """Tell the install line if a program of Ceph, or what makes the certificate, is not installed."""
        if any(shutil.which(program) is None for program in _PROGRAMS):
            return _INSTALL
        if self._tls:
            try:
                import trustme  # noqa: F401, PLC0415 - optional
            except ImportError:
                return "pip install trustme"
        return None

    def _launch(self, directory: str, resources: ExitStack) -> Access:
        port = free_port()
        frontend, endpoint_url, ca_bundle = f"endpoint=127.0.0.1:{port}", f"http://127.0.0.1:{port}", None
        if self._tls:
            tls_port = free_port()
            certificate = _make_certificate(directory)
            frontend += (
                f" ssl_endpoint=127.0.0.1:{tls_port}"
                f" ssl_certificate={certificate.chain_path} ssl_private_key={certificate.key_path}"
            )
            endpoint_url, ca_bundle = f"https://127.0.0.1:{tls_port}", certificate.ca_path
        access = S3Access(endpoint_url=endpoint_url, ca_bundle=ca_bundle)
        cluster = _Cluster(directory=directory, resources=resources)
        cluster.write_conf(frontend=frontend, objectstore=self._objectstore)
        cluster.start_storage()
        cluster.start_gateway(port)
        cluster.create_user(access)
        return access


class _Cluster:
    """The directory of a cluster of one, and the steps that bring it to life."""

    def __init__(self, *, directory: str, resources: ExitStack) -> None:
        self._directory = directory
        self._resources = resources
        self._fsid = str(uuid.uuid4())
        self._conf = os.path.join(directory, "ceph.conf")
        self._keyring = os.path.join(directory, "keyring")
        self._environment = {"CEPH_CONF": self._conf}

    def write_conf(self, *, frontend: str, objectstore: str) -> None:
        self._mon_port = free_port()
        for name in ("mon", "osd", "log", "run", "crash"):
            os.mkdir(os.path.join(self._directory, name))
        with open(self._conf, "w", encoding="ascii") as conf:
            conf.write(
                _CONF.format(
                    fsid=self._fsid,
                    mon_port=self._mon_port,
                    directory=self._directory,
                    objectstore=objectstore,
                    frontend=frontend,
                )
            )

    def start_storage(self) -> None:
        for entity, capabilities in _KEYS:
            new = ["--create-keyring"] if entity == "mon." else []
            pairs = [arg for i in range(0, len(capabilities), 2) for arg in ("--cap", *capabilities[i : i + 2])]
            self._tool("ceph-authtool", self._keyring, *new, "--gen-key", "-n", entity, *pairs)
        monmap = os.path.join(self._directory, "monmap")
        address = f"[v2:127.0.0.1:{self._mon_port}]"
        self._tool("monmaptool", "--create", "--clobber", "--fsid", self._fsid, "--addv", "a", address, monmap)
        self._tool(*("ceph-mon", "-c", self._conf, "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", self._keyring))
        self._daemon("ceph-mon", "-i", "a")
        # The same uuid in both commands, or the storage daemon never joins.
        osd_uuid = str(uuid.uuid4())
        self._tool("ceph", "-c", self._conf, "--connect-timeout", "30", "osd", "new", osd_uuid)
        self._tool("ceph-osd", "-c", self._conf, "--mkfs", "-i", "0", "--osd-uuid", osd_uuid)
        self._daemon("ceph-osd", "-i", "0")

    def start_gateway(self, port: int) -> None:
        # Asked to end, the gateway first finishes a pause of its garbage collector. It holds nothing to be lost.
        gateway = self._daemon("radosgw", "-n", "client.rgw", grace_s=0.2)
        gateway.wait_until(lambda: http_status(port) == 200)

    def create_user(self, access: S3Access) -> None:
        self._tool(
            *("radosgw-admin", "-c", self._conf, "-n", "client.rgw", "user", "create", "--uid=test"),
            *("--display-name=test", "--max-buckets=0"),  # 0: no limit
            *(f"--access-key={access.access_key}", f"--secret-key={access.secret_key}"),
        )

    def _tool(self, *command: str) -> None:
        run_tool(command, environment=self._environment)

    def _daemon(self, program: str, *arguments: str, grace_s: float = 10.0) -> ChildProcess:
        return self._resources.enter_context(
            running(
                [program, "-f", *arguments, "-c", self._conf],
                name=program,
                directory=self._directory,
                environment=self._environment,
                grace_s=grace_s,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Certificate:
    chain_path: str
    key_path: str
    ca_path: str


def _make_certificate(directory: str) -> _Certificate:
    import trustme  # noqa: PLC0415 - optional

    certificate = _Certificate(
        chain_path=os.path.join(directory, "cert.pem"),
        key_path=os.path.join(directory, "key.pem"),
        ca_path=os.path.join(directory, "ca.pem"),
    )
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    with open(certificate.chain_path, "wb") as chain:
        chain.write(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(certificate.key_path)
    authority.cert_pem.write_to_path(certificate.ca_path)
    return certificate
