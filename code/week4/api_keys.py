"""API keys: a file with the hash of each key and what the key may use. The keys themselves are stored nowhere."""

import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tiny_llm.config.fields import JsonFields, is_finite, is_integer, parse_object, require, shown
from tiny_llm.course import NotDone

LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent")
SECRET_BYTES = 32
OWN = "default"  # the name of the key that --api-key gives


@dataclass(frozen=True)
class Key:
    """A key by its name, which logs show, and the SHA-256 of its secret, in hexadecimal digits.

    The limits are None for no limit. `weight`: the key's share of the engine beside other keys.
    """

    name: str
    digest: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        ok = _is_like(r"[\w.-]{1,64}", self.name)
        require(ok, f"key name: expected 1 to 64 letters, digits, dots and dashes, found {shown(self.name)}")
        ok = _is_like("[0-9a-f]{64}", self.digest)
        require(ok, f"key {self.name}: digest: expected 64 hexadecimal digits; add the key again")
        self._check_limits()

    def _check_limits(self) -> None:
        for limit in LIMITS:
            value = getattr(self, limit)
            ok = value is None or (is_integer(value) and value >= 1)
            require(ok, f"key {self.name}: {limit}: expected an integer of at least 1, found {shown(value)}")
        ok = is_finite(self.weight) and self.weight > 0
        require(ok, f"key {self.name}: weight: expected a number above 0, found {shown(self.weight)}")


def _is_like(pattern: str, value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) is not None


def digest_of(secret: str) -> str:
    """Return the hash under which a secret is stored. A secret is random, so a fast hash is safe."""
    return hashlib.sha256(secret.encode()).hexdigest()


class KeyFile:
    """The keys that a server accepts. A change of the file is seen at the next request.

    `path`: the file, None for none. `api_key`: the secret of a single key without limits, named `OWN`.
    """

    def __init__(self, path: Path | None, api_key: str | None = None):
        self.path = path
        self._own = [Key(OWN, digest_of(api_key))] if api_key is not None else []
        self._read: list[Key] = []
        self._stamp: tuple[int, int] | None = None
        if path is not None:
            self.all()  # so that a faulty file is told at the start

    def all(self) -> list[Key]:
        """Return all keys. Raises ValueError for a faulty file, and OSError."""
        if self.path is None:
            return self._own
        state = os.stat(self.path)
        stamp = state.st_mtime_ns, state.st_ino
        if stamp != self._stamp:
            found = read_keys(self.path)
            taken = [key.name for key in self._own]  # rates and shares are counted by name
            clash = any(key.name in taken for key in found)
            require(not clash, f"{self.path}: the name of --api-key's own key, {OWN!r}, is there too; rename the key")
            self._read = found
            self._stamp = stamp
        return self._own + self._read

    def find(self, secret: str) -> Key | None:
        """Return the key with this secret, None where there is none.

        The time it takes depends neither on where texts differ nor on which key it is.
        """
        # YOUR CODE (w4.4.3): the key, without telling anything by the time it takes
        raise NotDone("w4.4.3")


def read_keys(path: Path) -> list[Key]:
    """Read a file that `write_keys` wrote. Raises ValueError that names the fault, and OSError."""
    data = parse_object(path.read_bytes(), str(path)).data
    rows = data.get("keys")
    if not isinstance(rows, list):
        raise ValueError(f"{path}: keys: expected a list, found {shown(rows)}; `tiny-llm keys add` makes one")
    keys: list[Key] = []
    for number, row in enumerate(rows):
        key = _key(row, f"{path}: keys[{number}]")
        require(all(key.name != other.name for other in keys), f"{path}: the key {key.name!r} is there twice")
        keys.append(key)
    return keys


def _key(row: Any, where: str) -> Key:
    given = JsonFields(row, where).data
    known = Key.__dataclass_fields__
    for name in given:
        require(name in known, f"{where}: {name}: unknown; known are {', '.join(known)}")
    for name in ("name", "digest"):
        require(name in given, f"{where}: {name}: missing; add the key again")
    return Key(**given)


def write_keys(path: Path, keys: Sequence[Key]) -> None:
    """Replace the file of keys in one step. Only its owner may read it."""
    text = json.dumps({"keys": [asdict(key) for key in keys]}, indent=1)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # readable by its owner alone
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def add_key(path: Path, name: str, **limits: Any) -> str:
    """Add a key to the file, which is made if it is missing. Return the key's secret, which is stored nowhere."""
    keys = read_keys(path) if path.exists() else []
    require(all(key.name != name for key in keys), f"{path}: has a key {name!r} already; choose another name")
    secret = f"tl-{secrets.token_urlsafe(SECRET_BYTES)}"
    write_keys(path, [*keys, Key(name, digest_of(secret), **limits)])
    return secret


def remove_key(path: Path, name: str) -> None:
    """Remove a key from the file. Raises ValueError where there is none of that name."""
    keys = read_keys(path)
    rest = [key for key in keys if key.name != name]
    known = ", ".join(key.name for key in keys) or "none"
    require(len(rest) < len(keys), f"{path}: has no key {name!r}; it has {known}")
    write_keys(path, rest)
