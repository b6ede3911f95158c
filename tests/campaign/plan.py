"""What a seed decides: one run of the campaign, as a record that can be printed."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, TypeAlias

from dcp_cloud.config import RetryConfig, TransferConfig
from dcp_cloud.testing.wrappers import Fault, Trouble, draw_faults

Kind: TypeAlias = Literal["alone", "killed", "race", "zombie", "readers", "ranks", "background"]

LOCAL_STORES = ("memory", "file")
SERVERS = ("moto", "ceph", "fake-gcs", "azurite")
STORES = (*LOCAL_STORES, *SERVERS)

# How often each kind of run is drawn. Runs of several processes take ten times as long as those of one.
_WEIGHTS: Mapping[Kind, float] = MappingProxyType(
    {"alone": 52, "killed": 10, "race": 14, "zombie": 12, "readers": 9, "ranks": 2.6, "background": 0.4}
)
_STORE_WEIGHTS = MappingProxyType({"memory": 60, "file": 34, "moto": 1, "ceph": 2, "fake-gcs": 1.5, "azurite": 1.5})
# Several processes can meet on disk and on servers only.
KINDS = tuple(_WEIGHTS)
_NEEDS_PROCESSES = ("killed", "ranks", "background")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run.

    Args:
        seed: Decides everything below.
        kind: What is tried: ``alone`` one save under faults; ``killed`` the same in a process that is killed; ``race``
            two jobs at once; ``zombie`` a job that sleeps while another one commits; ``readers`` loads during
            overwrites; ``ranks`` several ranks with faults on one or all; ``background`` saves in torch's process.
        store: Where.
        had: Whether a checkpoint is there before.
        overwrite: What the jobs are told.
        mode: Whether the save is in the foreground or in a thread.
        world_size: Ranks.
        is_large: Whether the state dict has a tensor of several parts even for S3.
        transfer: Parts, concurrency, memory, retries.
        troubles: Groups of faults.
        struck: Ranks (or jobs) that have the faults.
        use_collectives: As given to ``dcp.save``.
        moment: Request at which a zombie or a reader sleeps.
    """

    seed: int
    kind: Kind
    store: str
    had: bool
    overwrite: bool
    mode: Literal["none", "thread"]
    world_size: int
    is_large: bool
    transfer: TransferConfig
    troubles: tuple[Trouble, ...]
    struck: tuple[int, ...]
    use_collectives: bool
    moment: int

    def faults(self, who: int = 0) -> tuple[Fault, ...]:
        """Give the faults that a rank or a job meets."""
        if who not in self.struck:
            return ()
        end: Literal["crash", "exit", "kill"] = "crash"
        if self.kind in _NEEDS_PROCESSES:
            end = "exit" if self.seed % 3 == 0 else "kill"
        return draw_faults(f"{self.seed} {who}", self.troubles, end=end, requests=30 if self.is_large else 14)

    def __str__(self) -> str:
        transfer = self.transfer
        return (
            f"seed={self.seed} {self.kind} on {self.store} had={self.had} overwrite={self.overwrite} mode={self.mode}"
            f" ranks={self.world_size} collectives={self.use_collectives} large={self.is_large} moment={self.moment}"
            f" part={transfer.part_size_bytes} concurrency={transfer.max_concurrency}"
            f" inflight={transfer.max_inflight_bytes} troubles={'+'.join(self.troubles) or 'none'} struck={self.struck}"
        )


def draw_run(seed: int, stores: Collection[str] = STORES, kinds: Collection[str] = KINDS) -> Run:
    """Draw the run of a seed, among some stores and kinds."""
    draw = random.Random(f"run {seed}")
    allowed = {kind: weight for kind, weight in _WEIGHTS.items() if kind in kinds}
    kind = draw.choices(list(allowed), list(allowed.values()))[0]
    places = {
        name: weight
        for name, weight in _STORE_WEIGHTS.items()
        if name in stores and not (kind in _NEEDS_PROCESSES and name == "memory")
    }
    store = draw.choices(list(places), list(places.values()))[0]
    world_size = draw.choice((1, 2, 2, 4)) if kind == "ranks" else 1
    troubles = _troubles(draw, kind)
    struck = tuple(range(world_size)) if draw.random() < 0.3 else (draw.randrange(world_size),)
    if kind in ("race", "readers", "zombie"):
        struck = draw.choice(((0,), (1,), (0, 1)))
    is_large = store in SERVERS and draw.random() < 0.2
    transfer = _transfer(draw, is_shared=kind in ("zombie", "readers"))
    if store in SERVERS:  # a request takes milliseconds there: not one for each 64 bytes
        transfer = replace(transfer, part_size_bytes=max(transfer.part_size_bytes, 4096))
    if is_large:
        part_bytes = draw.choice((2**20, 5 * 2**20))
        transfer = replace(transfer, part_size_bytes=part_bytes, max_inflight_bytes=64 * 2**20)
    return Run(
        seed=seed,
        kind=kind,
        store=store,
        had=kind == "readers" or draw.random() < 0.7,
        overwrite=kind == "readers" or draw.random() < 0.75,
        mode="thread" if kind in ("alone", "ranks") and draw.random() < 0.25 else "none",
        world_size=world_size,
        is_large=is_large,
        transfer=transfer,
        troubles=troubles,
        struck=struck,
        use_collectives=not (kind == "ranks" and draw.random() < 0.2),
        moment=draw.randint(1, 14),
    )


def _troubles(draw: random.Random, kind: Kind) -> tuple[Trouble, ...]:
    choices: dict[Kind, tuple[tuple[Trouble, ...], ...]] = {
        "alone": (
            (),
            ("passing",),
            ("passing", "flips"),
            ("lasting",),
            ("lasting", "passing"),
            ("end",),
            ("end", "passing"),
            ("rot",),
            ("rot", "passing"),
            ("listings", "passing"),
            ("flips",),
        ),
        "killed": (("end",), ("end", "passing"), ("end", "passing", "flips")),
        "race": ((), ("passing",), ("passing",), ("end", "passing"), ("lasting", "passing"), ("passing", "flips")),
        "zombie": ((), ("passing",), ("end",), ("lasting",), ("passing", "flips")),
        "readers": ((), ("passing",), ("passing", "flips")),
        "ranks": ((), ("passing",), ("lasting",), ("lasting", "passing"), ("end",), ("end", "passing"), ("flips",)),
        "background": ((), ("passing",), ("lasting",), ("end",)),
    }
    return draw.choice(choices[kind])


def _transfer(draw: random.Random, *, is_shared: bool) -> TransferConfig:
    # A process has one budget: a job that is held up half way keeps its share of it from the other one.
    shares = (64 * 2**20,) if is_shared else (1, 5000, 200_000, 64 * 2**20)
    return TransferConfig(
        part_size_bytes=draw.choice((64, 700, 4096, 65536)),
        max_concurrency=draw.randint(1, 6),
        max_inflight_bytes=draw.choice(shares),
        max_gap_bytes=draw.choice((None, 0, 100)),
        retry=RetryConfig(max_attempts=8, base_delay_s=0.001, max_delay_s=0.01, total_timeout_s=5),
    )
