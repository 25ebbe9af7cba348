"""How much the serving engine may use, and how it shares it."""

from dataclasses import dataclass, field
from pathlib import Path

from tiny_llm.config.fields import is_integer, require, shown
from tiny_llm.config.scheduler import SchedulerConfig

DISK_BYTES = 4 * 2**30


@dataclass(frozen=True)
class ServingConfig:
    """How much the serving engine may use, and how it shares it.

    `kv_bytes`: memory of the block pool, all of it taken at the start; None for room for `max_sequences` whole
    contexts of at most 4,096 tokens, but no more than a quarter of the memory that is free. `block_size`: tokens of a
    block. `prefix_cache`: keep what was computed for prompts that begin alike. `disk_folder`: where blocks of the
    prefix cache go that the pool has no room for, found again by later runs too, `disk_bytes` of them at most.
    `max_requests`: unfinished requests at once; one more is refused. `max_unread`: tokens of a request that its reader
    may leave unread; with one more the request ends. `scheduler`: which requests run when. The kind of cache, its bits
    and the context are settings of the engine; its rotating caches have no pool, so `kv_bytes`, `block_size` and
    `disk_folder` are refused with them.
    """

    kv_bytes: int | None = None
    block_size: int = 32
    prefix_cache: bool = True
    disk_folder: Path | str | None = None
    disk_bytes: int = DISK_BYTES
    max_requests: int = 1024
    max_unread: int = 65_536
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)

    def __post_init__(self) -> None:
        for name in ("kv_bytes", "block_size", "disk_bytes", "max_requests", "max_unread"):
            value = getattr(self, name)
            ok = (value is None and name == "kv_bytes") or (is_integer(value) and value >= 1)
            require(ok, f"{name}: expected an integer of at least 1, found {shown(value)}")
        require(
            isinstance(self.prefix_cache, bool),
            f"prefix_cache: expected true or false, found {shown(self.prefix_cache)}",
        )
        require(
            self.disk_folder is None or isinstance(self.disk_folder, (str, Path)),
            f"disk_folder: expected a folder's path, found {shown(self.disk_folder)}",
        )
        require(
            isinstance(self.scheduler, SchedulerConfig),
            f"scheduler: expected a SchedulerConfig, found {shown(self.scheduler)}",
        )
        require(
            self.disk_folder is not None or self.disk_bytes == DISK_BYTES,
            f"disk_bytes: is for a disk_folder, found {self.disk_bytes} without one; name a folder or leave it out",
        )
        require(
            self.prefix_cache or self.disk_folder is None,
            f"disk_folder: holds blocks of the prefix cache, which is off; found {str(self.disk_folder)!r}",
        )
