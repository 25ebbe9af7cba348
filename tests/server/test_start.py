"""The start of the server: the model loads while FastAPI is imported."""

import subprocess
import sys

LIGHT = "from tiny_llm.server import models, run, observe, keys, settings, audit, logs"


def test_a_model_can_load_before_fastapi_is_imported() -> None:
    code = f"import sys; {LIGHT}; print([m for m in ('fastapi', 'pydantic', 'opentelemetry') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
