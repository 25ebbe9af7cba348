"""/metrics of a running server counts what its clients did."""

from pathlib import Path

from tests.server.conftest import serving
from tiny_llm.server.models import ModelSpec

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "ignore_eos": True}


def test_metrics_count_requests(random_path: Path) -> None:
    with serving(ModelSpec("tiny", str(random_path))) as running, running.http() as http:
        for stream in (True, False):
            http.post("/v1/chat/completions", json={**CHAT, "stream": stream})
        http.post("/v1/embeddings", json={"model": "tiny", "input": "hello"})
        found = http.get("/metrics")
        assert found.status_code == 200 and found.headers["content-type"].startswith("text/plain")
        lines = found.text.splitlines()
        labels = '{engine="0",model_name="tiny"}'
        assert f"vllm:generation_tokens_total{labels} 8.0" in lines
        assert f"vllm:num_requests_running{labels} 0.0" in lines
        assert f"vllm:time_to_first_token_seconds_count{labels} 2.0" in lines
        assert f"vllm:e2e_request_latency_seconds_count{labels} 2.0" in lines
