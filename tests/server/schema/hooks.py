"""Let most generated requests name the model that there is, so that they reach more than the check of the name."""

from typing import Any

import schemathesis


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    if isinstance(body, dict) and isinstance(body.get("model"), str) and 1 <= len(body["model"]) <= 4096:
        body["model"] = "tiny"
    return body
