"""What probes and routers ask a server: is it ready, does it live, how busy is it. And caches kept apart."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.server.conftest import LOCAL, Running, serving, wait_for
from tiny_llm.config import EngineConfig
from tiny_llm.config.speculation import SpeculationConfig
from tiny_llm.server.keys import KeyFile, add_key, write_keys
from tiny_llm.server.models import ModelSpec
from tiny_llm.server.state import Speed

TEXT = "the quick brown fox jumps over the lazy dog and so on and on until the words of the prompt are many"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": TEXT}], "max_tokens": 4, "ignore_eos": True}


def cached(http: httpx.Client, salt: str | None, **headers: str) -> int:
    """Send the same prompt; return how many of its tokens were found in the cache."""
    found = http.post("/v1/chat/completions", json={**CHAT, "cache_salt": salt}, headers=headers).json()
    return found["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_prompts_with_different_salts_share_no_cache(random_path: Path) -> None:
    with serving(ModelSpec("tiny", str(random_path))) as running, running.http() as http:
        found = [cached(http, salt) for salt in (None, "a", "b", None, "a", "c")]
        assert found[:3] == [0, 0, 0] and found[3] == found[4] > 0 and found[5] == 0


@pytest.mark.parametrize("apart", [True, False])
def test_keys_share_a_cache_unless_told_otherwise(random_path: Path, tmp_path: Path, apart: bool) -> None:
    path = tmp_path / "keys.json"
    alice, bob = ({"authorization": f"Bearer {add_key(path, name)}"} for name in ("alice", "bob"))
    settings = replace(LOCAL, keys_file=path, cache_per_tenant=apart)
    with serving(ModelSpec("tiny", str(random_path)), settings=settings) as running, running.http() as http:
        assert cached(http, None, **alice) == 0
        assert (cached(http, None, **bob) == 0) == apart
        assert cached(http, None, **alice) > 0 and cached(http, "a", **alice) == 0


def test_a_changed_weight_counts_from_the_next_request_on(random_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    head = {"authorization": f"Bearer {add_key(path, 'alice', weight=2.0)}"}
    with serving(ModelSpec("tiny", str(random_path)), settings=replace(LOCAL, keys_file=path)) as running:
        engine = running.models.first.engine
        assert engine is not None
        told: list[tuple[str, float]] = []
        tell, engine.set_weight = engine.set_weight, lambda *of: (told.append(of), tell(*of))
        with running.http(headers=head) as http:
            assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
            write_keys(path, [replace(KeyFile(path).all()[0], weight=5.0)])
            assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
        assert told == [("alice", 2.0), ("alice", 5.0)]
        for weight in (0, -1, float("nan"), "2", None):
            with pytest.raises(ValueError, match="weight: expected a number above 0"):
                tell("alice", weight)


def test_routers_learn_how_busy_the_server_is(random_path: Path) -> None:
    with serving(ModelSpec("tiny", str(random_path))) as running, running.http() as http:
        info = http.get("/server_info").json()
        assert info["served_model_name"] == "tiny" and info["max_model_len"] == 2048
        assert info["max_total_num_tokens"] > 2048 and info["max_running_requests"] == 16
        idle = http.get("/v1/loads").json()
        assert idle["dp_rank_count"] == 1 and idle["aggregate"]["total_reqs"] == 0
        body = {**CHAT, "max_tokens": 1800, "stream": True}
        with running.http() as other, other.stream("POST", "/v1/chat/completions", json=body) as stream:
            lines = stream.iter_lines()  # a dropped iterator would close the connection
            next(lines)
            wait_for(lambda: http.get("/v1/loads").json()["loads"][0]["num_running_reqs"] == 1)
            busy = http.get("/v1/loads").json()
            (load,) = busy["loads"]
            assert load["num_used_tokens"] > 0 and 0 < load["token_usage"] < 1
            assert load["utilization"] == 1 / 16 and load["max_total_num_tokens"] == info["max_total_num_tokens"]
            assert busy["aggregate"]["total_running_reqs"] == load["num_running_reqs"] == 1
        running.wait_idle()
        assert http.get("/v1/loads").json()["loads"][0]["gen_throughput"] > 0


def test_speed_is_that_since_the_last_call() -> None:
    now = [0.0]
    speed = Speed(lambda: now[0])
    now[0] = 2.0
    assert speed.since_last(10) == 5.0 and speed.since_last(10) == 0.0
    now[0] = 3.0
    assert speed.since_last(14) == 4.0


def statuses(http: httpx.Client) -> list[int]:
    return [http.get(path).status_code for path in ("/live", "/ready", "/health")]


def test_an_engine_whose_thread_has_ended_is_told(random_path: Path) -> None:
    with serving(ModelSpec("tiny", str(random_path))) as running, running.http() as http:
        assert statuses(http) == [200, 200, 200]
        engine = running.models.first.engine
        assert engine is not None
        engine.close()
        assert statuses(http) == [503, 503, 503]
        error = http.get("/live").json()["error"]
        assert error["message"] == "tiny: the engine's thread has ended. Restart the server."
        assert error["code"] == "engine_failed"
        refused = http.post("/v1/chat/completions", json=CHAT)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "cancelled"


def test_an_engine_that_hangs_is_told_until_it_goes_on(random_path: Path) -> None:
    going_on = threading.Event()
    going_on.set()

    def hang(name: str):
        return lambda event: going_on.wait(60)

    settings = replace(LOCAL, step_seconds=0.2)
    with serving(ModelSpec("tiny", str(random_path)), settings=settings, observe=hang) as running:
        try:
            with running.http() as http:
                assert statuses(http) == [200, 200, 200]
                going_on.clear()
                client = threading.Thread(target=lambda: running.http().post("/v1/chat/completions", json=CHAT))
                client.start()
                wait_for(lambda: statuses(http) == [503, 503, 503], 30)
                assert "longer than 0.2 seconds" in http.get("/live").json()["error"]["message"]
                going_on.set()
                client.join(30)
                assert statuses(http) == [200, 200, 200]
        finally:
            going_on.set()


def test_a_draining_server_lives_but_takes_nothing(random_path: Path) -> None:
    with serving(ModelSpec("tiny", str(random_path))) as running, running.http() as http:
        running.state.drain.begin()
        assert statuses(http) == [200, 503, 503]


def test_a_response_tells_how_many_guesses_were_right(random_path: Path) -> None:
    config = EngineConfig(speculation=SpeculationConfig("suffix", adaptive=False))
    body = {**CHAT, "max_tokens": 120, "temperature": 0, "return_metrics": True}
    with serving(ModelSpec("tiny", str(random_path)), engine_config=config) as running, running.http() as http:
        for _ in range(2):  # the second answer is guessed from the first
            found = http.post("/v1/chat/completions", json=body).json()
        figures = found["metrics"]["speculative_decoding"]
        accepted, drafted = figures["num_accepted_draft_tokens"], figures["num_draft_tokens"]
        assert 0 < accepted <= drafted and figures["draft_acceptance_rate"] == accepted / drafted
        assert json.dumps(figures) and figures["num_spec_steps"] + accepted <= 120


def test_a_request_id_comes_back(tiny: Running) -> None:
    with tiny.http() as http:
        assert http.get("/v1/models", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
