"""Imports go one way, from cli down to config; LEVELS has the order."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "tiny_llm"

LEVELS = [
    {"_blas", "_machine", "_start", "_temporary"},
    {"config"},
    {"model"},
    {"kernels"},
    {"quantize", "cache"},
    {"decode"},
    {"engine"},
    {""},  # tiny_llm itself: load, LLM, SamplingParams
    {"apps", "parallel"},
    {"server"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
BESIDE = {  # rooms that only cli may import, and pocket its `train`; and what they may import
    "train": {"_blas", "config", "model", "cache"},
    "pocket": {"_blas", "config", "model", "cache", "decode", "train"},
    "course": set(LEVEL) - {"cli", "__main__"},
    "views": set(LEVEL) - {"cli", "__main__"},
    "doctor": {"_blas", "_machine", "_temporary", "config", "kernels"},
}
WITHOUT_ARRAYS = {
    f"tiny_llm.engine.{name}" for name in "request blocks radix kept ledger sequences scheduler simulate events".split()
}
NEVER = {"mlx_lm", "transformers"}  # oracles and peers, of the tests and the benchmarks
OPTIONAL = {"fastapi", "uvicorn", "prometheus_client", "chromadb", "mcp", "opentelemetry", "llguidance", "matplotlib"}
OPTIONAL |= {"bm25s", "faiss", "pypdf", "selectolax"}
SLOW = {"huggingface_hub"}  # takes as long to import as all else at start-up
STARTS_FAST = {"", "cli", "_blas", "_start"}  # rooms that may put an import off for the sake of start-up time
IMPORTS_LATE = STARTS_FAST | {"doctor"}  # and one that must run where MLX can't be imported


def imports(module: str, source: str, modules: set[str]) -> Iterator[tuple[str, bool]]:
    """The modules that `source` imports, and whether it does so within a function."""
    tree = ast.parse(source)
    package = module if module in {m.rpartition(".")[0] for m in modules} else module.rpartition(".")[0]
    within = {
        id(child)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in within
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                name = f"{origin}.{alias.name}"
                yield (name if name in modules else origin), id(node) in within


def at_run_time(source: str) -> str:
    """`source` without what only type checkers run."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    return ast.unparse(tree)


def room_of(module: str) -> str | None:
    """`decode` for tiny_llm.decode.sampler, "" for tiny_llm, None for what is not ours."""
    top, _, rest = module.partition(".")
    return rest.partition(".")[0] if top == "tiny_llm" else None


def may_import(room: str, other: str) -> bool:
    if room == other or (room == "cli" and other in BESIDE):
        return True
    if room in BESIDE:
        return other in BESIDE[room]
    return other in LEVEL and LEVEL[other] < LEVEL[room]


def reaches_arrays(module: str, graph: dict[str, set[str]]) -> bool:
    """Whether importing `module` imports mlx, in however many steps."""
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name.partition(".")[0] == "mlx":
            return True
        if name not in seen:
            seen.add(name)
            waiting += graph.get(name, set()) | ({name.rpartition(".")[0]} - {""} if name in graph else set())
    return False


def violations(sources: dict[str, str]) -> list[str]:
    """What is wrong in `sources`, a map from module names to their texts."""
    found, graph = [], {}
    for module, source in sources.items():
        room = room_of(module)
        if room is None or (room not in LEVEL and room not in BESIDE):
            found.append(f"{module} is in no room; HOUSE names them all")
            continue
        seen = list(imports(module, source, set(sources)))
        graph[module] = {name for name, inside in imports(module, at_run_time(source), set(sources)) if not inside}
        for name, inside in seen:
            other, top = room_of(name), name.partition(".")[0]
            if top in NEVER:
                found.append(f"{module} imports {name}, which only tests and benchmarks may")
            if other is not None and not may_import(room, other):
                found.append(f"{module} imports {name}: that is not downward")
            if inside and room not in IMPORTS_LATE and top not in OPTIONAL | SLOW:
                found.append(f"{module} imports {name} within a function; it is neither optional nor start-up time")
    found += [
        f"{module} reaches mlx" for module in sorted(WITHOUT_ARRAYS & set(graph)) if reaches_arrays(module, graph)
    ]
    return found


def package_sources() -> dict[str, str]:
    paths = sorted(PACKAGE.rglob("*.py"))
    names = [".".join(["tiny_llm", *path.relative_to(PACKAGE).with_suffix("").parts]) for path in paths]
    return {name.removesuffix(".__init__"): path.read_text() for name, path in zip(names, paths, strict=True)}


def test_imports_go_downward() -> None:
    assert violations(package_sources()) == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("tiny_llm.model.qwen3", "from tiny_llm.cache.base import KVCache", "not downward"),
        ("tiny_llm.model.qwen3", "from tiny_llm import cache", "not downward"),
        ("tiny_llm.model.qwen3", "from ..cache import base", "not downward"),
        ("tiny_llm.cache.base", "import tiny_llm.quantize.affine", "not downward"),
        ("tiny_llm.engine.llm", "from tiny_llm import load", "not downward"),
        ("tiny_llm.engine.llm", "from tiny_llm.pocket import recipe", "not downward"),
        ("tiny_llm.pocket.recipe", "from tiny_llm.engine import llm", "not downward"),
        ("tiny_llm.train.trainer", "from tiny_llm.pocket import recipe", "not downward"),
        ("tiny_llm.train.trainer", "from tiny_llm.engine import llm", "not downward"),
        ("tiny_llm.engine.llm", "from tiny_llm.train import trainer", "not downward"),
        ("tiny_llm.views.tree", "from tiny_llm.train import plot", "not downward"),
        ("tiny_llm.decode.generate", "if TYPE_CHECKING:\n    from tiny_llm.engine import llm", "not downward"),
        ("tiny_llm.decode.generate", "def f():\n    import json", "within a function"),
        ("tiny_llm.decode.generate", "import mlx_lm.utils", "only tests"),
        ("tiny_llm.cli.chat", "def f():\n    from transformers import AutoModel", "only tests"),
        ("tiny_llm.engine.scheduler", "import mlx.core as mx", "reaches mlx"),
        ("tiny_llm.engine.scheduler", "from tiny_llm.cache import base", "reaches mlx"),
        ("tiny_llm.cupboard", "", "no room"),
    ],
)
def test_a_violation_is_found(module: str, source: str, complaint: str) -> None:
    others = dict.fromkeys(["tiny_llm", "tiny_llm.cache", "tiny_llm.engine", "tiny_llm.model", "tiny_llm.pocket"], "")
    found = violations({**others, "tiny_llm.cache.base": "import mlx.core", module: source})
    assert [complaint in line for line in found] == [True]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "tiny_llm.cli.chat",
            "def f():\n    from tiny_llm import load, doctor\n    from tiny_llm.pocket import recipe",
        ),
        ("tiny_llm.pocket.trainer", "from tiny_llm.train.trainer import Trainer"),
        ("tiny_llm.cli.pocket", "from tiny_llm.train import plot"),
        ("tiny_llm.server.app", "from tiny_llm.engine.llm import LLM\ndef f():\n    import uvicorn"),
        ("tiny_llm.engine.scheduler", "from tiny_llm.config import EngineConfig\nfrom . import request"),
        ("tiny_llm.engine.scheduler", "if TYPE_CHECKING:\n    from tiny_llm.cache import base"),
    ],
)
def test_what_is_allowed_passes(module: str, source: str) -> None:
    others = dict.fromkeys(["tiny_llm", "tiny_llm.cache", "tiny_llm.engine", "tiny_llm.engine.request"], "")
    sources = {**others, "tiny_llm.cache.base": "import mlx.core", module: source}
    assert violations(sources) == []
