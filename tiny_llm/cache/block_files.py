"""Blocks of a pool as files: what the prefix tree evicts from a full pool is kept on the disk, also for later runs.

A file's name follows from the model and from all tokens up to the block's end, so any process finds it. While the
folder holds more bytes than the limit, the file that was used longest ago is deleted; any file may be deleted at any
time. Processes may share a folder: each counts the files that it found at its start and that it wrote.
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
UNFINISHED = re.compile(r"\.[0-9a-f]{64}\.safetensors-.*")  # an old one is of a process that was killed
HOUR = 3600.0


class BlockFiles:
    """At most `limit` bytes of files in `folder`, for the pool of the model with this fingerprint.

    `trouble` says why the last block could not be written; it is empty where the block was written. Raises OSError for
    a folder that can't be made or read.
    """

    def __init__(self, folder: Path, limit: int, pool: PagedPool, model: str):
        self.folder = folder
        self.limit = limit
        self.pool = pool
        self.trouble = ""
        shapes = [[buffer.shape[0], *buffer.shape[2:]] for buffer in pool.state]
        dtypes = [str(buffer.dtype) for buffer in pool.state]
        layout = repr((shapes, dtypes, pool.ops.int8)).encode()  # int8 activations give other keys and values
        self.about = {
            "format": FORMAT,
            "version": str(VERSION),
            "model": model,
            "block": hashlib.sha256(layout).hexdigest(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        self.sizes = self._found()
        self.total = sum(self.sizes.values())
        self._trim()

    def _found(self) -> OrderedDict[str, int]:
        """Return the size of each block's file in the folder, by last use; delete old unfinished files."""
        found = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):  # another process has deleted it
                stat = entry.stat()
                if NAME.fullmatch(entry.name):
                    found.append((stat.st_mtime_ns, entry.name, stat.st_size))
                elif UNFINISHED.fullmatch(entry.name) and stat.st_mtime < time.time() - HOUR:
                    self._unlink(entry.name)
        return OrderedDict((name, size) for _, name, size in sorted(found))

    def __contains__(self, address: str) -> bool:
        return self._name(address) in self.sizes

    def store(self, address: str, block: int) -> None:
        """Write a block of the pool, unless its file exists. A failure is only noted in `trouble`."""
        name = self._name(address)
        self.trouble = ""
        if name in self.sizes:
            self._used(name)
            return
        path = self.folder / name
        try:
            arrays = {str(i): buffer[:, block] for i, buffer in enumerate(self.pool.state)}
            mx.eval(arrays)
            sealed.write(path, self.about, arrays, durable=False)
            self.sizes[name] = path.stat().st_size
        except (OSError, MemoryError, RuntimeError) as error:  # no room on the disk, or none for the copy
            self.trouble = f"not kept on the disk: {error}"
            return
        self.total += self.sizes[name]
        self._trim()

    def load(self, address: str, block: int) -> str:
        """Read a block into the pool. Return why that failed, "" where it did not. A damaged file is deleted."""
        name = self._name(address)
        path = self.folder / name
        try:
            about = sealed.check(path, FORMAT, VERSION)
            digest = {"sha256": about["sha256"]}
            require(about == self.about | digest, f"{name}: is of another model or pool")
            arrays = mx.load(str(path))
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
        count = len(state)
        names = {str(i) for i in range(count)}
        require(arrays.keys() == names, f"{name}: expected {count} arrays")
        for i, buffer in enumerate(state):
            array = arrays[str(i)]
            shape = (buffer.shape[0], *buffer.shape[2:])
            where = f"{name}: array {i}"
            fits = array.shape == shape and array.dtype == buffer.dtype
            require(fits, f"{where} is of another shape")
            require(sealed.usable(array), f"{where}: expected finite numbers, found others")

    def _name(self, address: str) -> str:
        """Return the name of a block's file."""
        text = self.about["model"] + self.about["block"] + address
        return hashlib.sha256(text.encode()).hexdigest() + ".safetensors"

    def _used(self, name: str) -> None:
        """Note that a file is the last used, here and for later runs."""
        self.sizes.move_to_end(name)
        with contextlib.suppress(OSError):
            os.utime(self.folder / name)

    def _trim(self) -> None:
        """Delete the files that were used longest ago while all are larger than the limit."""
        while self.total > self.limit:
            self._delete(next(iter(self.sizes)))

    def _delete(self, name: str) -> None:
        self.total -= self.sizes.pop(name, 0)
        self._unlink(name)

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.folder / name)
