"""The wheel holds the whole package, and the lock file what pyproject.toml asks for."""

import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (made,) = folder.glob("tiny_llm-*-py3-none-any.whl")
    return made


def test_the_wheel_holds_code_and_data(wheel: Path) -> None:
    """Data files too: a chat template or weights left out would show only on a user's machine."""
    files = {path for path in (ROOT / "tiny_llm").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    names = {path.relative_to(ROOT).as_posix() for path in files}
    assert {"tiny_llm/__init__.py", "tiny_llm/py.typed"} <= names
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == names
        information = {name.partition(".dist-info/")[2]: name for name in archive.namelist() if ".dist-info/" in name}
        assert b"tiny-llm = tiny_llm.cli:main" in archive.read(information["entry_points.txt"])
        assert "licenses/LICENSE" in information


def test_the_wheel_imports(wheel: Path, tmp_path: Path) -> None:
    """From the wheel alone, in a folder that is not the checkout."""
    code = "import tiny_llm; print(tiny_llm.__file__)"
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(wheel)!r}); {code}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(wheel))


SERVES = ("server", "structured")  # what `make chat` and `make serve` need
TESTS = (*SERVES, "rag", "mcp", "otel", "dev")


def unlocked(project: str, lock: str, extras: Sequence[str] = ()) -> list[str]:
    """The requirements in pyproject.toml's text, with these extras, that the lock does not satisfy."""
    tables = tomllib.loads(project)["project"]
    texts = list(tables["dependencies"])
    for extra in extras:
        texts += tables["optional-dependencies"][extra]
    wanted = [Requirement(text) for text in texts]
    pins = re.findall(r"^([\w.-]+)==([\w.]+)", lock, re.MULTILINE)
    versions: dict[str, list[str]] = {}
    for name, version in pins:
        versions.setdefault(canonicalize_name(name), []).append(version)
    return [
        str(need)
        for need in wanted
        if not (found := versions.get(canonicalize_name(need.name))) or not all(map(need.specifier.contains, found))
    ]


@pytest.mark.parametrize(("name", "extras"), [("requirements.lock", SERVES), ("requirements-test.lock", TESTS)])
def test_the_locks_satisfy_the_project(name: str, extras: Sequence[str]) -> None:
    project, lock = ((ROOT / file).read_text() for file in ("pyproject.toml", name))
    assert unlocked(project, lock, extras) == []


def test_the_locks_agree() -> None:
    """Installing the larger lock over the smaller one must not replace a package."""
    small, large = ((ROOT / name).read_text() for name in ("requirements.lock", "requirements-test.lock"))
    pins = [re.findall(r"^([\w.-]+==[\w.]+(?: ;.*?)?) \\$", lock, re.MULTILINE) for lock in (small, large)]
    assert len(pins[0]) > 30
    assert {pin.split()[0] for pin in pins[0]} - {pin.split()[0] for pin in pins[1]} == set()


def test_a_stale_lock_is_found() -> None:
    project = '[project]\ndependencies = ["numpy>=2", "rich"]'
    assert unlocked(project, "numpy==2.1 \\\nrich==15.0\n") == []
    assert unlocked(project, "numpy==1.9 \\\nrich==15.0\n") == ["numpy>=2"]
    assert unlocked(project, "numpy==2.1\n") == ["rich"]
