"""Nothing in the repository belongs to one machine: no absolute path, no address of a private package index."""

import os
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[2]
SYSTEM = re.compile(r"(?<![\w./~$}-])/(?:home|Users|root|mnt|tmp)/\w+")
URL = re.compile(r"https?://[^\s\"'<>)]+")
PUBLIC = {"pypi.org", "files.pythonhosted.org"}
LOCKED = {"pyproject.toml", "requirements.lock", "requirements-test.lock", "uv.lock", "Makefile"}


def machine_bound(name: str, text: str, own: list[str]) -> list[str]:
    """Absolute paths and index hosts in `text`; `own` are strings that this machine would leave behind."""
    found = [f"{name}: {match[0]}" for match in SYSTEM.finditer(text)]
    found += [f"{name}: {word}" for word in own if word in text]
    if name in LOCKED:
        hosts = {urlsplit(url).hostname or "" for url in URL.findall(text)}
        found += [f"{name}: {host}" for host in sorted(hosts - PUBLIC)]
    return found


def own_strings() -> list[str]:
    """This checkout's place, and the hosts of the package indexes that this machine is set to."""
    settings = [
        os.environ.get(name, "")
        for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX")
    ]
    hosts = {urlsplit(url).hostname or "" for setting in settings for url in setting.split()}
    place = [str(ROOT)] if len(ROOT.parts) > 2 else []
    return place + sorted(hosts - PUBLIC - {"", "localhost"})


def tracked() -> list[str]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_tracked_files_belong_to_no_machine() -> None:
    own = own_strings()
    names = tracked()
    assert "pyproject.toml" in names
    assert [
        line for name in names for line in machine_bound(name, (ROOT / name).read_text(errors="replace"), own)
    ] == []


@pytest.mark.parametrize("folder", ["home", "Users", "root", "mnt", "tmp"])
def test_a_machine_path_is_found(folder: str) -> None:
    path = "/".join(["", folder, "ada", "model"])
    assert machine_bound("a.py", f'load("{path}")', [])
    assert machine_bound("a.py", f"a/relative{path} and ~{path} and https://host{path}", []) == []


def test_an_index_host_is_found() -> None:
    assert machine_bound("requirements.lock", "--index-url https://packages.example/simple", []) == [
        "requirements.lock: packages.example"
    ]
    assert machine_bound("requirements.lock", "https://files.pythonhosted.org/packages/a.whl", []) == []
    assert machine_bound("README.md", "see packages.example", ["packages.example"]) == ["README.md: packages.example"]
