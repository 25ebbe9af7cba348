"""Read, search, edit and write files below one folder, the root, and nowhere else.

A path is walked a folder at a time with `openat` and O_NOFOLLOW. So neither `..` nor a link leads out, also not a link
that another process puts there between a check and its use. A file is replaced by `rename`, never written in place.
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from tiny_llm.apps.agent.tools import ToolError

LARGEST = 10_000_000  # bytes of a file that is read
LONGEST_NAME = 4_000  # characters of a path
MOST_FILES = 20_000  # that one search looks at
MOST_MATCHES = 50  # that one search gives back
SEARCH_SECONDS = 10.0
DEEPEST = 40  # folders inside one another that a search enters
LINE = 200  # characters of a matching line
TEMPORARY = ".tiny-llm-"  # begins the name of a file that is being written
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a named pipe must not wait for a writer
FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class FileChange(NamedTuple):
    """The bytes of a file before and after a change; None where there is no file."""

    path: str
    before: bytes | None
    after: bytes | None


class Root:
    """The only folder whose files the tools reach. Raises ValueError for a path that is no folder.

    The root itself may be reached by links: it is opened once. `journal` gets each change before it is made, so that
    it can be undone also after a crash.
    """

    def __init__(self, folder: Path, journal: Callable[[FileChange], None] | None = None):
        self.folder = folder.resolve()
        self.journal = journal
        try:
            self._fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise ValueError(f"root: expected a folder, found {str(folder)!r}: {error}; name an existing one") from None

    def close(self) -> None:
        """Close the folder. A second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def parts(self, path: str) -> list[str]:
        """Return the names on the way from the root to a path. Raises ToolError for a path that leads out."""
        inside = path.removeprefix(f"{self.folder}/")
        bad = "\0" in inside or len(inside) > LONGEST_NAME or inside.startswith("/")
        parts = [part for part in inside.split("/") if part not in ("", ".")]
        if bad or ".." in parts or any(part.startswith(TEMPORARY) for part in parts):
            raise denied(path)
        return parts

    def read(self, path: str) -> bytes:
        """Return a file's bytes. Raises ToolError for no file, a link, another kind of file, or one too large."""
        *folders, name = self._named(path)
        missing = ToolError(f"file not found: {path}")
        with self._folder(folders, path, missing) as folder, reported(path, missing):
            return read_bytes(folder, name, path)

    def text(self, path: str) -> str:
        """Return a file's text. Raises ToolError as `read` does, and for bytes that are no UTF-8 text."""
        try:
            text = self.read(path).decode()
        except UnicodeDecodeError:
            raise ToolError(f"not a text file: {path}") from None
        if "\0" in text:
            raise ToolError(f"not a text file: {path}")
        return text

    def write(self, path: str, content: str) -> None:
        """Replace a file's text or make the file. Raises ToolError for a missing folder, a link, or no permission."""
        try:
            data = content.encode()
        except UnicodeEncodeError:
            raise ToolError("the text has half of a surrogate pair, which UTF-8 can't hold") from None
        self.put(path, data)

    def put(self, path: str, data: bytes | None, journaled: bool = True) -> None:
        """Replace a file's bytes, make the file or, with None, delete it. Raises ToolError as `write` does."""
        *folders, name = self._named(path)
        parent = "/".join(folders)
        with self._folder(folders, path, ToolError(f"folder not found: {parent or path}")) as folder:
            with reported(path, denied(path)):
                before = self._before(folder, name, path)
            if journaled and self.journal is not None:
                self.journal(FileChange("/".join([*folders, name]), before, data))
            with reported(path, denied(path)):
                if data is not None:
                    replace(folder, name, data)
                elif before is not None:
                    os.unlink(name, dir_fd=folder)

    def undo(self, change: FileChange) -> None:
        """Take a change back. Raises ToolError where the file was changed again since then, by another program."""
        try:
            found: bytes | None = self.read(change.path)
        except ToolError:
            found = None
        if found == change.before:
            return  # the change was never made, or is taken back already
        if found != change.after:
            raise ToolError(f"{change.path}: was changed since then; compare it yourself")
        self.put(change.path, change.before, journaled=False)

    def walk(self, folder: str = "") -> Iterator[tuple[str, int, str]]:
        """Yield (path, open folder, name) of each file below a folder, in order, without links and hidden names."""
        parts = self.parts(folder)
        missing = ToolError(f"folder not found: {folder}")
        with self._folder(parts, folder, missing) as opened:
            yield from walk_folder(opened, "/".join(parts))

    def _before(self, folder: int, name: str, path: str) -> bytes | None:
        try:
            return read_bytes(folder, name, path)
        except FileNotFoundError:
            return None

    def _named(self, path: str) -> list[str]:
        parts = self.parts(path)
        if not parts:
            raise ToolError(f"file not found: {path}")
        return parts

    @contextmanager
    def _folder(self, parts: list[str], path: str, missing: ToolError) -> Iterator[int]:
        """Open the folder at the end of `parts`, and close it afterwards."""
        if self._fd < 0:
            raise ToolError("the root is closed")
        fd = os.dup(self._fd)
        try:
            for part in parts:
                with reported(path, missing):
                    inner = os.open(part, FOLDER_FLAGS, dir_fd=fd)
                os.close(fd)
                fd = inner
            yield fd
        finally:
            os.close(fd)


def denied(path: str) -> ToolError:
    """Return the error for a path that may not be used."""
    return ToolError(f"permission denied: {path}".replace("\0", "\\0")[: LONGEST_NAME // 10])


@contextmanager
def reported(path: str, missing: ToolError) -> Iterator[None]:
    """Turn errors of the system into errors for the model: `missing` where there is no such file or folder."""
    try:
        yield
    except OSError as error:
        found = denied(path)
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            found = missing
        raise found from None


def read_bytes(folder: int, name: str, path: str) -> bytes:
    """Return the bytes of a regular file in an open folder. Raises OSError, and ToolError for another kind of file."""
    fd = os.open(name, FILE_FLAGS, dir_fd=folder)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ToolError(f"not a text file: {path}")
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ToolError(f"the file has more than {LARGEST:,} bytes: {path}")
    return data


def replace(folder: int, name: str, data: bytes) -> None:
    """Put a file in the place of another in one step, with the permissions of the other."""
    temporary = f"{TEMPORARY}{os.getpid()}-{time.monotonic_ns()}"
    mode = None
    with suppress(FileNotFoundError):
        mode = stat.S_IMODE(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o644 if mode is None else 0o600, dir_fd=folder)
    try:
        with os.fdopen(fd, "wb") as file:
            if mode is not None:
                os.fchmod(fd, mode)  # the mode of `open` is cut by the umask
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise


def walk_folder(folder: int, path: str) -> Iterator[tuple[str, int, str]]:
    """Yield (path, open folder, name) of each file below an open folder."""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.name.startswith(".") or entry.is_symlink():
            continue
        inner = f"{path}/{entry.name}" if path else entry.name
        if inner.count("/") > DEEPEST:
            continue
        if not entry.is_dir(follow_symlinks=False):
            yield inner, folder, entry.name
            continue
        try:
            fd = os.open(entry.name, FOLDER_FLAGS, dir_fd=folder)
        except OSError:
            continue  # another process changed it, or it may not be read
        try:
            yield from walk_folder(fd, inner)
        finally:
            os.close(fd)


def search(root: Root, pattern: str, folder: str = "") -> list[str]:
    """Return a line for each match of a plain text in names and lines of files. Capitals make no difference.

    The lines are "path" where the name matches and "path:line: text" where a line does. A last line says where the
    search was cut short.
    """
    wanted = pattern.casefold()
    end = time.monotonic() + SEARCH_SECONDS
    found: list[str] = []
    if not wanted:
        raise ToolError("the pattern is empty")
    for number, (path, opened, name) in enumerate(root.walk(folder)):
        if number >= MOST_FILES or len(found) >= MOST_MATCHES or time.monotonic() > end:
            return [*found[:MOST_MATCHES], f"(cut short after {number} files: name a folder or a longer text)"]
        if wanted in name.casefold():
            found.append(path)
        found += matching_lines(opened, name, path, wanted)
    return found


def matching_lines(folder: int, name: str, path: str, wanted: str) -> list[str]:
    """Return "path:line: text" for each line of a text file that holds `wanted`, in small letters."""
    try:
        text = read_bytes(folder, name, path).decode()
    except (OSError, ToolError, UnicodeDecodeError):
        return []
    if "\0" in text:
        return []
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if wanted in line.casefold():
            found.append(f"{path}:{number}: {line.strip()[:LINE]}")
    return found
