"""A cache of compiled kernels for the tests; where there is no compiler there is nothing to test.

The engine is imported within functions: pytest reads this file before --code puts a learner's files in its place.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest


@pytest.fixture(scope="session")
def kernel_cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from tiny_llm._blas import cache_dir
    from tiny_llm.kernels.sim import compiler

    try:
        compiler.compiler()
    except ValueError as error:
        pytest.skip(str(error))
    before = os.environ.get("TINY_LLM_CACHE")
    folder = kept(request.config) or tmp_path_factory.getbasetemp() / "kernels"  # one, whoever takes the fixture
    compiled_for_cpu = cache_dir() / "cpu"
    os.environ["TINY_LLM_CACHE"] = str(folder)
    share(compiled_for_cpu, folder / "cpu")
    forget_others(folder, keep=compiler.folder().name)
    yield
    if before is None:
        del os.environ["TINY_LLM_CACHE"]
    else:
        os.environ["TINY_LLM_CACHE"] = before


def kept(config: pytest.Config) -> Path | None:
    """The folder of compiled kernels, kept between runs by content; None with `-p no:cacheprovider`.

    Most of the time of tests on kernels is the C++ compiler's. `pytest --cache-clear` empties the folder.
    """
    cache = getattr(config, "cache", None)
    return Path(cache.mkdir("kernels")) if cache is not None else None


def share(compiled: Path, place: Path) -> None:
    """Let tests that run later in this process find the kernels that are compiled already."""
    if compiled == place or (place.is_symlink() and place.readlink() == compiled):
        return  # the first in a test session within a test session
    place.parent.mkdir(parents=True, exist_ok=True)
    link = place.with_name(f"cpu.{os.getpid()}")
    link.symlink_to(compiled)
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place, ignore_errors=True)
    link.replace(place)


def forget_others(folder: Path, keep: str) -> None:
    """Remove what another version of the simulator has compiled."""
    for other in (folder / "kernels").glob("*"):
        if other.name != keep:
            shutil.rmtree(other, ignore_errors=True)


@pytest.fixture(autouse=True)
def own_cache(kernel_cache: None) -> None:
    """Every test of this room runs kernels."""


Run = Callable[..., list[mx.array]]


@pytest.fixture
def run() -> Run:
    """run(body, inputs, …): one launch of a kernel `probe` with inputs x0, x1, … and output `out`, checked."""
    from tiny_llm.kernels.sim import Simulator, metal_kernel

    def launch(
        body: str,
        inputs: Sequence[Any] = (),
        *,
        n: int = 64,
        group: int = 64,
        dtype: mx.Dtype = mx.float32,
        header: str = "",
        template: Sequence[tuple[str, Any]] = (),
        simulator: Any = None,
        **options: Any,
    ) -> list[mx.array]:
        atomic = options.pop("atomic_outputs", False)
        names = [f"x{i}" for i in range(len(inputs))]
        call = {
            "inputs": inputs,
            "grid": (n, 1, 1),
            "threadgroup": (group, 1, 1),
            "output_shapes": [(n,)],
            "output_dtypes": [dtype],
            "template": template,
            "simulator": simulator or Simulator(check=True),
            **options,
        }
        return metal_kernel("probe", names, ["out"], body, header, atomic_outputs=atomic)(**call)

    return launch
