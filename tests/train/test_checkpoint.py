"""Nothing that was saved is lost, whatever happens while the next checkpoint is written."""

import shutil
from collections import namedtuple
from pathlib import Path

import mlx.core as mx
import pytest

from tests.train.examples import Repeating
from tiny_llm.train import checkpoint


def test_a_damaged_checkpoint_is_named_with_the_remedy(tmp_path: Path) -> None:
    trainer = Repeating(tmp_path)
    trainer.save()
    trainer.save()
    (tmp_path / checkpoint.NAME).write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors: damaged .* delete it, and checkpoint\.previous"):
        trainer.resume()
    (tmp_path / checkpoint.NAME).unlink()
    assert trainer.resume()


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    Repeating(tmp_path).save()
    with pytest.raises(
        ValueError, match=r"checkpoint\.safetensors: made by recipe repeating, this is other: use another --out"
    ):
        Repeating(tmp_path, digest="other").resume()


def test_a_full_disk_is_told_before_the_old_checkpoint_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Repeating(tmp_path)
    trainer.save()
    before = (tmp_path / checkpoint.NAME).read_bytes()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(OSError, match=r"a checkpoint needs \d+ MB and 0 MB are free: make room and resume"):
        trainer.save()
    assert sorted(path.name for path in tmp_path.iterdir()) == [checkpoint.NAME]
    assert (tmp_path / checkpoint.NAME).read_bytes() == before


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Repeating(tmp_path)
    trainer.save()
    before = (tmp_path / checkpoint.NAME).read_bytes()

    def broken(path: str, *_: object) -> None:
        Path(path).write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mx, "save_safetensors", broken)
    with pytest.raises(OSError, match="No space left"):
        trainer.save()
    assert (tmp_path / checkpoint.NAME).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.NAME]


def test_between_the_renames_the_previous_checkpoint_counts(tmp_path: Path) -> None:
    """A kill after the old checkpoint was renamed and before the new one took its place."""
    trainer = Repeating(tmp_path)
    trainer.step()
    trainer.save()
    (tmp_path / checkpoint.NAME).rename(tmp_path / checkpoint.PREVIOUS)
    (tmp_path / "checkpoint.new.safetensors").write_bytes(b"half a file")
    again = Repeating(tmp_path)
    assert again.resume()
    assert again.progress.step == 1
