"""Blocks of a pool as files: what the prefix tree gives up for want of room, kept on the disk, also for later runs.

A block is named by the model and by all tokens up to its end, so any process finds it. What the folder holds beyond
the limit goes, whatever was used longest ago first; any file may be deleted at any time. Processes may share a folder:
each counts what it found at its start and what it wrote.
"""

import contextlib
import hashlib
import os
import re
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

from tiny_llm.cache import sealed
from tiny_llm.cache.paged import PagedPool
from tiny_llm.config.fields import require

FORMAT, VERSION = "tiny-llm block", 1
NAME = re.compile(r"[0-9a-f]{64}\.safetensors")
UNFINISHED = re.compile(r"\.[0-9a-f]{64}\.safetensors-.*")  # of a process that was killed, if it is old
HOUR = 3600.0


class BlockFiles:
    """At most `limit` bytes of files in `folder`, for the pool of the model with this fingerprint.

    `trouble` says why the last block could not be written, "" where it was. Raises OSError for a folder that can't be
    made or read.
    """

    def __init__(self, folder: Path, limit: int, pool: PagedPool, model: str):
        self.folder, self.limit, self.pool, self.trouble = folder, limit, pool, ""
        shapes = [[buffer.shape[0], *buffer.shape[2:]] for buffer in pool.state]
        self.about = {"format": FORMAT, "version": str(VERSION), "model": model}
        self.about["block"] = hashlib.sha256(repr((shapes, [str(b.dtype) for b in pool.state])).encode()).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        entries = []
        for entry in os.scandir(folder):
            with contextlib.suppress(FileNotFoundError):  # another process has deleted it
                entries.append((entry.stat(), entry.name))
        for stat, name in entries:
            if UNFINISHED.fullmatch(name) and stat.st_mtime < time.time() - HOUR:
                self._unlink(name)
        found = sorted((item for item in entries if NAME.fullmatch(item[1])), key=lambda item: item[0].st_mtime_ns)
        self.sizes: OrderedDict[str, int] = OrderedDict((name, stat.st_size) for stat, name in found)  # by last use
        self.total = sum(self.sizes.values())
        self._trim()

    def __contains__(self, address: str) -> bool:
        return self._name(address) in self.sizes

    def store(self, address: str, block: int) -> None:
        """Write a block of the pool, unless it is there. A failure harms nobody."""
        name, self.trouble = self._name(address), ""
        if name in self.sizes:
            self._used(name)
            return
        try:
            arrays = {str(i): buffer[:, block] for i, buffer in enumerate(self.pool.state)}
            mx.eval(arrays)
            sealed.write(self.folder / name, self.about, arrays, durable=False)
            self.sizes[name] = (self.folder / name).stat().st_size
        except (OSError, MemoryError, RuntimeError) as error:  # no room on the disk, or none for the copy
            self.trouble = f"not kept on the disk: {error}"
            return
        self.total += self.sizes[name]
        self._trim()

    def load(self, address: str, block: int) -> str:
        """Read a block into the pool; returns why that can't be done, "" where it was. A damaged file is deleted."""
        name = self._name(address)
        try:
            about = sealed.check(self.folder / name, FORMAT, VERSION)
            require(about == self.about | {"sha256": about["sha256"]}, f"{name}: is of another model or pool")
            arrays = mx.load(str(self.folder / name))
            assert isinstance(arrays, dict)
            self._check_arrays(name, arrays)
        except (OSError, ValueError, RuntimeError) as error:
            self._delete(name)
            return f"not read from the disk: {error}"
        for i, buffer in enumerate(self.pool.state):
            buffer[:, block] = arrays[str(i)]
        mx.eval(self.pool.state)
        self._used(name)
        return ""

    def _check_arrays(self, name: str, arrays: Mapping[str, mx.array]) -> None:
        """Evaluate a block's arrays. Raises ValueError where they are not of this pool's shapes, or not finite."""
        state = self.pool.state
        require(arrays.keys() == {str(i) for i in range(len(state))}, f"{name}: expected {len(state)} arrays")
        for i, buffer in enumerate(state):
            array, shape = arrays[str(i)], (buffer.shape[0], *buffer.shape[2:])
            require(array.shape == shape and array.dtype == buffer.dtype, f"{name}: array {i} is of another shape")
            require(sealed.usable(array), f"{name}: array {i}: expected finite numbers, found others")

    def _name(self, address: str) -> str:
        kind = self.about["model"] + self.about["block"]
        return hashlib.sha256((kind + address).encode()).hexdigest() + ".safetensors"

    def _used(self, name: str) -> None:
        self.sizes.move_to_end(name)
        with contextlib.suppress(OSError):
            os.utime(self.folder / name)

    def _trim(self) -> None:
        while self.total > self.limit:
            self._delete(next(iter(self.sizes)))

    def _delete(self, name: str) -> None:
        self.total -= self.sizes.pop(name, 0)
        self._unlink(name)

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.folder / name)
