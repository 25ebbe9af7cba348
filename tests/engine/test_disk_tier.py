"""The prefix cache's second place: what the pool has no room for comes back from files, or harmlessly does not."""

import errno
import os
import time
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from tests.engine.test_loop import GREEDY, make_loop, packed, request, run, summary
from tests.support import make_model
from tiny_llm import LLM, load
from tiny_llm.cache import block_files, sealed
from tiny_llm.config.serving import ServingConfig
from tiny_llm.engine.events import Event
from tiny_llm.engine.loop import Loop
from tiny_llm.engine.serving import Engine

BLOCKS, SIZE = 24, 4
TEXTS = [[*range(i, i + 40)] for i in (0, 100, 200)]  # 10 blocks each: three don't fit


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return load(make_model(tmp_path_factory.mktemp("model")))


def tiered(llm: LLM, folder: Path | None, events: list[Event], limit: int = 2**30, bits: int | None = None) -> Loop:
    config = make_loop(llm, BLOCKS, SIZE).config
    assert config.kv_bytes
    room = config.kv_bytes // (3 if bits else 1)  # about as many blocks
    config = replace(config, kv_bytes=room)
    if folder is not None:
        config = replace(config, disk_folder=folder, disk_bytes=limit)
    return Loop(llm.model, llm.tokenizer, config, events.append, engine=packed(bits))


def ask(llm: LLM, loop: Loop, rounds: int = 2) -> list[object]:
    """Each text in turn, again and again, alone in the engine."""
    answers = []
    for number in range(rounds * len(TEXTS)):
        one = request(llm, str(number), TEXTS[number % len(TEXTS)], GREEDY)
        answers.append(summary(run(loop, [one])[one.id][0]))
    return answers


def loaded(events: list[Event]) -> int:
    """Tokens that came back, while nothing went wrong."""
    assert not [e.note for e in events if e.kind in ("load", "evict") and e.note]
    return sum(e.tokens for e in events if e.kind == "load")


@pytest.mark.parametrize("bits", [None, 8])
def test_texts_are_the_same_and_less_is_computed(llm: LLM, tmp_path: Path, bits: int | None) -> None:
    with_files, without = list[Event](), list[Event]()
    files = tiered(llm, tmp_path / "new" / "blocks", with_files, bits=bits)
    assert ask(llm, files) == ask(llm, tiered(llm, None, without, bits=bits))
    assert loaded(with_files) >= 60 and loaded(without) == 0
    computed = [sum(e.tokens for e in events if e.kind == "step") for events in (with_files, without)]
    assert computed[0] <= computed[1] - 60
    files.scheduler.check()


def test_another_run_goes_on_from_the_files(llm: LLM, tmp_path: Path) -> None:
    events: list[Event] = []
    first = tiered(llm, tmp_path, [])
    want = ask(llm, first)
    first.close()
    assert ask(llm, tiered(llm, tmp_path, events)) == want
    early = [e.tokens for e in events if e.kind == "load"][:3]
    assert early == [36, 36, 36]  # all whole blocks but the last token's


def test_the_engine_keeps_its_tree_when_it_closes(llm: LLM, tmp_path: Path) -> None:
    config = ServingConfig(2**20, 8, disk_folder=str(tmp_path))
    for known in (0, 32):
        with Engine(llm.path, serving=config) as engine:
            [[answer]] = engine.generate([TEXTS[0]], GREEDY)
            assert answer.stats.cached_tokens == known


def test_the_limit_holds_and_the_oldest_go_first(llm: LLM, tmp_path: Path) -> None:
    events: list[Event] = []
    loop = tiered(llm, tmp_path, events)
    ask(llm, loop, rounds=1)
    loop.close()
    each = {path.stat().st_size for path in tmp_path.iterdir()}
    limit = 5 * max(each)
    kept = {path.name for path in sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)[-5:]}
    (tmp_path / "other.txt").write_text("not ours")
    stray = tmp_path / f".{'0' * 64}.safetensors-abc"  # of a process that was killed two hours ago
    stray.touch()
    os.utime(stray, (time.time() - 7200,) * 2)
    loop = tiered(llm, tmp_path, events, limit)
    assert {path.name for path in tmp_path.glob("*.safetensors")} == kept
    for _ in range(2):
        ask(llm, loop, rounds=1)
        loop.close()
        assert sum(path.stat().st_size for path in tmp_path.glob("*.safetensors")) <= limit
    assert (tmp_path / "other.txt").exists() and not stray.exists()
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("damage", ["cut", "byte", "gone", "empty", "another's"])
def test_a_damaged_file_is_deleted_and_told(llm: LLM, tmp_path: Path, damage: str) -> None:
    events: list[Event] = []
    first = tiered(llm, tmp_path, [])
    want = ask(llm, first)
    first.close()
    second = tiered(llm, tmp_path, events)
    paths = sorted(tmp_path.glob("*.safetensors"))
    for path in paths:
        data = path.read_bytes()
        middle = len(data) // 2
        if damage == "gone":
            path.unlink()
        elif damage == "another's":  # whole, but of another pool
            about = {"format": block_files.FORMAT, "version": "1", "model": "b" * 64}
            sealed.write(path, about, {}, durable=False)
        else:
            bad = {"cut": data[:middle], "byte": data[:middle] + b"~!" + data[middle + 2 :], "empty": b""}
            path.write_bytes(bad[damage])
    assert ask(llm, second) == want
    faults = [e.note for e in events if e.kind == "load" and e.note]
    words = {"gone": "No such file|expected a file", "another's": "of another model or pool"}.get(damage, "damaged")
    assert faults and all(fault.startswith("not read from the disk: ") for fault in faults)
    assert any(word in faults[0] for word in words.split("|"))
    second.close()
    third: list[Event] = []
    assert ask(llm, tiered(llm, tmp_path, third)) == want
    assert sum(e.tokens for e in third if e.kind == "load") > 0  # what was deleted is written anew


def test_another_models_files_are_not_looked_at(llm: LLM, tmp_path: Path, tmp_path_factory) -> None:
    first = tiered(llm, tmp_path / "blocks", [])
    ask(llm, first)
    first.close()
    other, events = load(make_model(tmp_path / "other", seed=7)), list[Event]()
    want = ask(other, tiered(other, None, []))
    assert ask(other, tiered(other, tmp_path / "blocks", events), rounds=1) == want[:3]
    assert loaded(events) == 0


@pytest.mark.parametrize("failing", ["replace", "fdopen", "utime"])
def test_a_full_disk_harms_nobody(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    events: list[Event] = []
    want, loop = ask(llm, tiered(llm, None, [])), tiered(llm, tmp_path, events)
    monkeypatch.setattr(os, failing, full)
    assert ask(llm, loop) == want
    loop.close()
    if failing != "utime":
        faults = [e.note for e in events if e.kind == "evict"]
        assert faults and all("not kept on the disk: [Errno 28] No space left" in fault for fault in faults)
        assert list(tmp_path.iterdir()) == []


def test_contradictions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="disk_folder: holds blocks of the prefix cache, which is off"):
        ServingConfig(prefix_cache=False, disk_folder=tmp_path)
    with pytest.raises(ValueError, match="disk_bytes: expected an integer of at least 1, found 0"):
        ServingConfig(disk_folder=tmp_path, disk_bytes=0)


def test_a_folder_that_can_not_be_made_is_named(llm: LLM, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"disk_folder: .*{tmp_path}/file.*; name a folder"):
        tiered(llm, tmp_path / "file", [])


def test_after_a_failure_nothing_lost_is_kept(llm: LLM, tmp_path: Path) -> None:
    """When the pool had to be cleared, its empty blocks must not be written as if they held what is known."""
    loop = tiered(llm, tmp_path, [])
    run(loop, [request(llm, "a", TEXTS[0], GREEDY)])
    loop.scheduler.ledger.tree.forget()
    loop.close()
    assert not loop.scheduler.ledger.tree.nodes and list(tmp_path.iterdir()) == []


def test_the_order_of_use_outlives_the_run(llm: LLM, tmp_path: Path) -> None:
    """A file's time of change says when its block was last used: a run that reads it makes it younger."""
    loop = tiered(llm, tmp_path, [])
    files, block = loop.scheduler.ledger.tree.tier, loop.scheduler.blocks.allocate()
    for address in ("first", "second", "third"):
        files.store(address, block)
    for age, address in enumerate(("third", "second", "first")):
        os.utime(tmp_path / files._name(address), (1e9 - age, 1e9 - age))
    files.load("first", block)
    files.store("second", block)  # it is there: used again
    each = next(iter(files.sizes.values()))
    later = block_files.BlockFiles(tmp_path, 2 * each, loop.store, files.about["model"])
    assert "first" in later and "second" in later and "third" not in later


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("what", ["missing", "short", "integers", "nan"])
def test_blocks_made_by_hand_are_not_taken(llm: LLM, tmp_path: Path, bits: int | None, what: str) -> None:
    """With a right digest, of this model and pool: NaN would spoil every answer that shares the block."""
    want = ask(llm, tiered(llm, None, [], bits=bits))
    first = tiered(llm, tmp_path, [], bits=bits)
    ask(llm, first)
    first.close()
    for path in tmp_path.glob("*.safetensors"):
        arrays, about = mx.load(str(path), return_metadata=True)
        last = str(len(arrays) - 1)
        array = arrays.pop(last)
        made = {"short": array[..., :-1], "integers": array.astype(mx.int32), "nan": array * mx.nan}
        about.pop("sha256")
        sealed.write(path, about, arrays | ({last: made[what]} if what in made else {}), durable=False)
    events: list[Event] = []
    assert ask(llm, tiered(llm, tmp_path, events, bits=bits)) == want
    assert all(e.note.startswith("not read from the disk: ") for e in events if e.kind == "load")
