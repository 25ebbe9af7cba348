"""An audit log: a line for each request, of who asked for what, and how it ended.

It has no texts of prompts or answers, and no keys.
"""

import errno
import json
import logging
import os
import threading
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from tiny_llm.config.fields import require
from tiny_llm.server.logs import NAME as LOGGER


@dataclass(frozen=True)
class AuditEntry:
    """Who asked for what: never a text, a key or a path that a client has chosen.

    `client` is the address that the request came from, `key_id` the name of the key, "" without one. `route` is the
    route's pattern.
    """

    request_id: str
    client: str
    key_id: str
    method: str
    route: str
    model: str
    status: int
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0
    finish_reason: str = ""


class AuditLog:
    """A file with a line of JSON for each request, for one process. At `max_bytes` it becomes `<name>.1`, and so on.

    `keep` older files stay. Each line is whole, also after `kill -9` or on a full disk: a line is one write to the
    file's end, and half a line is cut off. Only the owner may read the files.
    """

    def __init__(self, path: Path, max_bytes: int = 16 * 2**20, keep: int = 8):
        require(max_bytes >= 1024, f"--audit-bytes: expected at least 1024, found {max_bytes}")
        require(keep >= 0, f"--audit-keep: expected at least 0, found {keep}")
        self.path, self.max_bytes, self.keep = path, max_bytes, keep
        self._file, self._size = -1, 0
        self._lock = threading.Lock()
        self._told = False
        try:
            self._open()
        except OSError as error:
            words = f"--audit-log: can't write {path}: {error.strerror}; name a file in a folder that exists"
            raise ValueError(words) from error

    def write(self, entry: AuditEntry) -> None:
        """Add a line. A line that can't be written is dropped, with a warning the first time; requests go on."""
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, **asdict(entry)}) + "\n"
        with self._lock:
            try:
                self._write(line.encode())
                self._told = False
            except OSError as error:
                if not self._told:
                    logging.getLogger(LOGGER).warning("audit log not written: %s", error.strerror)
                self._told = True

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1

    def _open(self) -> None:
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        size = os.fstat(self._file).st_size
        self._size = _whole_lines(self._file, size)
        if self._size < size:
            os.ftruncate(self._file, self._size)

    def _write(self, line: bytes) -> None:
        if self._file < 0:
            self._open()
        if self._size and self._size + len(line) > self.max_bytes:
            self._rotate()
        written = os.write(self._file, line)
        if written < len(line):  # the disk is full
            os.ftruncate(self._file, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += written

    def _rotate(self) -> None:
        """Rename the files, each to the next number, and begin a new one."""
        os.close(self._file)
        self._file = -1
        for number in range(self.keep, 0, -1):
            older = self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))
        self.path.unlink(missing_ok=True)
        self._open()

    def _numbered(self, number: int) -> Path:
        return self.path if number == 0 else self.path.with_name(f"{self.path.name}.{number}")


def _whole_lines(file: int, size: int) -> int:
    """Return where the last whole line of a file ends."""
    end = size
    while end:
        begin = max(0, end - 2**16)
        found = os.pread(file, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0
