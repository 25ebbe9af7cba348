"""The audit log: whole lines whatever happens, in files of a bounded size."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tiny_llm.server.audit import AuditEntry, AuditLog

ENTRY = AuditEntry("req-1", "127.0.0.1", "laptop", "POST", "/v1/chat/completions", "pocket", 200, 5, 0, 7, 0.5)


def read(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_says_who_when_what_and_how_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    log.write(ENTRY)
    log.close()
    AuditLog(path).write(ENTRY)  # a restarted server goes on
    first, second = read(path)
    assert first.pop("time") <= second.pop("time")
    assert first == second == {field.name: getattr(ENTRY, field.name) for field in fields(AuditEntry)}
    assert path.stat().st_mode & 0o777 == 0o600
    assert not {"prompt", "text", "key", "authorization", "messages", "path"} & first.keys()


def test_files_stay_below_the_size_and_old_ones_are_dropped(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "a", max_bytes=1024, keep=2)
    for number in range(40):
        log.write(AuditEntry(f"req-{number}", *"abcde", number))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "a.1", "a.2"]
    assert all(0 < p.stat().st_size <= 1024 for p in tmp_path.iterdir())
    statuses = [line["status"] for name in ("a.2", "a.1", "a") for line in read(tmp_path / name)]
    assert statuses == list(range(40 - len(statuses), 40))
    assert len(statuses) >= 7


def test_no_old_file_is_kept_where_none_is_wanted(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "a", max_bytes=1024, keep=0)
    for _ in range(40):
        log.write(ENTRY)
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and read(tmp_path / "a")


def test_values_cannot_forge_a_line(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "a")
    log.write(AuditEntry("x\n{}", "\u2028", "\ud800", "POST", "/é", "m", 200))
    (line,) = read(tmp_path / "a")
    assert (line["request_id"], line["client"], line["key_id"]) == ("x\n{}", "\u2028", "\ud800")


def test_half_a_line_is_cut_off_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "a"
    AuditLog(path).write(ENTRY)
    whole = path.read_bytes()
    for rest in (b"{", whole[:-1], b"x" * 200_000):
        path.write_bytes(whole * 3 + rest)
        AuditLog(path).close()
        assert path.read_bytes() == whole * 3
    path.write_bytes(b"no end of line")
    AuditLog(path).close()
    assert path.read_bytes() == b""


WRITER = """
import sys
from pathlib import Path
from tiny_llm.server.audit import AuditEntry, AuditLog
log = AuditLog(Path(sys.argv[1]), max_bytes=20_000, keep=3)
print("ready", flush=True)
number = 0
while True:
    log.write(AuditEntry("r" * (number % 700), *"abcde", number))
    number += 1
"""


def test_lines_are_whole_after_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for attempt in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None and writer.stdout.readline()
        time.sleep(0.05 + attempt * 0.037)
        writer.kill()
        writer.wait()
        writer.stdout.close()
        AuditLog(path, max_bytes=20_000, keep=3).close()
        files = sorted(tmp_path.iterdir())
        assert len(files) <= 4 and all(read(file) or file == path for file in files)


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "a", max_bytes=50_000, keep=20)

    def work(number: int) -> None:
        for _ in range(100):
            log.write(AuditEntry("x" * 300, *"abcde", number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(len(read(file)) for file in tmp_path.iterdir()) == 600


def test_a_full_disk_costs_no_request_and_leaves_no_half_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = AuditLog(tmp_path / "a")
    log.write(ENTRY)
    write = os.write
    monkeypatch.setattr("tiny_llm.server.audit.os.write", lambda file, line: write(file, line[:20]))
    for _ in range(3):
        log.write(ENTRY)
    monkeypatch.undo()
    log.write(ENTRY)
    assert len(read(tmp_path / "a")) == 2
    assert [r.message for r in caplog.records] == ["audit log not written: No space left on device"]


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--audit-log: can't write .*: No such file or directory; name a file"):
        AuditLog(tmp_path / "missing" / "a")
    with pytest.raises(ValueError, match="--audit-bytes: expected at least 1024, found 5"):
        AuditLog(tmp_path / "a", max_bytes=5)
    with pytest.raises(ValueError, match="--audit-keep: expected at least 0, found -1"):
        AuditLog(tmp_path / "a", keep=-1)
