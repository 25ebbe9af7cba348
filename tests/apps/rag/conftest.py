"""These tests need the packages of the extra `rag`; without them they are skipped."""

from importlib.util import find_spec

collect_ignore_glob = [] if all(map(find_spec, ("bm25s", "chromadb", "pypdf", "selectolax"))) else ["test_*.py"]
