"""Responses on disk, so that `previous_response_id` survives a restart. Each key has a folder and bounds of its own."""

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from tiny_llm.server.errors import ApiError, bad_request
from tiny_llm.server.keys import Key

MOST_RESPONSES = 4096  # of one key
RESPONSE_ID = re.compile("resp_[0-9a-f]{24}")
Record = dict[str, Any]


class ResponseStore:
    """Stored responses by id, with the input of each. Other processes may use the same folder at the same time.

    Where the responses of a key are more than MOST_RESPONSES, or more than `max_bytes`, those that were not used for
    the longest time are deleted. Only the owner of the folder may read it.
    """

    def __init__(self, folder: Path, max_bytes: int):
        self.folder, self.max_bytes = folder, max_bytes

    def put(self, key: Key | None, record: Record) -> None:
        """Store {"response", "input", "output"} under the response's id. Raises OSError where the disk refuses it."""
        folder = self._folder(key)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=".new-")  # readable by its owner alone
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
                json.dump(record, file, ensure_ascii=False)
            os.replace(name, self._path(key, record["response"]["id"]))
        except BaseException:
            os.unlink(name)
            raise
        self._shrink(folder)

    def get(self, key: Key | None, name: str) -> Record:
        """Return a record. Raises ApiError 404 where there is none, or its file is damaged."""
        path = self._path(key, name)
        try:
            record = json.loads(path.read_bytes())
            os.utime(path)
        except (OSError, ValueError):
            raise missing(name) from None
        if not isinstance(record, dict) or not {"response", "input"} <= record.keys():
            raise missing(name)
        return record

    def delete(self, key: Key | None, name: str) -> None:
        """Delete a record. Raises ApiError 404 where there is none."""
        try:
            self._path(key, name).unlink()
        except OSError:
            raise missing(name) from None

    def items(self, key: Key | None, name: str | None) -> list[Record]:
        """Return the items of a conversation up to a response, that response's output included.

        Raises ApiError where the response, or one before it, is not stored.
        """
        turns: list[list[Record]] = []
        while name is not None:
            try:
                record = self.get(key, name)
            except ApiError:
                words = f"Previous response with id '{name}' not found."
                raise bad_request(words, "previous_response_id", "previous_response_not_found") from None
            response = record["response"]
            turns.append(items_of(record))
            name = response["previous_response_id"]
        return [item for turn in reversed(turns) for item in turn]

    def item(self, key: Key | None, name: str) -> Record:
        """Return an item of a stored response, or of its input. Its id has the response's. Raises ApiError."""
        response = "resp_" + name.partition("_")[2].partition("_")[0]
        if RESPONSE_ID.fullmatch(response):
            for item in items_of(self.get(key, response)):
                if item.get("id") == name:
                    return dict(item)
        raise bad_request(f"Item with id '{name}' not found.", "input")

    def _folder(self, key: Key | None) -> Path:
        return self.folder / ("without-key" if key is None else hashlib.sha256(key.digest.encode()).hexdigest()[:32])

    def _path(self, key: Key | None, name: str) -> Path:
        """Return a response's file. Raises ApiError 404 for a text that can't be an id: it may lead elsewhere."""
        if not RESPONSE_ID.fullmatch(name):
            raise missing(name)
        return self._folder(key) / f"{name}.json"

    def _shrink(self, folder: Path) -> None:
        """Delete the responses that were unused for the longest time, until the others fit the bounds."""
        found = []
        for entry in os.scandir(folder):
            try:
                state = entry.stat()
            except FileNotFoundError:  # another process was faster
                continue
            found.append((state.st_mtime_ns, state.st_size, entry.path))
        total = sum(size for _, size, _ in found)
        found.sort(reverse=True)
        while len(found) > MOST_RESPONSES or total > self.max_bytes:
            _, size, path = found.pop()
            total -= size
            Path(path).unlink(missing_ok=True)


def items_of(record: Record) -> list[Record]:
    """Return the items of a stored turn. Older records have no `output` beside the response."""
    items: list[Record] = record["input"] + record.get("output", record["response"]["output"])
    return items


def missing(name: str) -> ApiError:
    return ApiError(404, f"Response with id '{name:.100}' not found.")
