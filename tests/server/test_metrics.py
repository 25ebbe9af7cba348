"""The metrics: what vLLM's dashboards and routers read, counted as the engine's own log and the answers tell it."""

import sys
from dataclasses import replace
from random import Random

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.engine.fake import FakeRunner, advance
from tests.server.observed import serve_some
from tests.support import make_model
from tiny_llm.config import SamplingParams, SchedulerConfig
from tiny_llm.engine.answers import Stats
from tiny_llm.engine.blocks import BlockPool
from tiny_llm.engine.choosers import Beams
from tiny_llm.engine.events import Event
from tiny_llm.engine.radix import RadixTree
from tiny_llm.engine.request import Request, State
from tiny_llm.engine.scheduler import Scheduler
from tiny_llm.server.metrics import Metrics, ModelMetrics

STATS = Stats(10, 4, 6, time_to_first_token=0.3, decode_time=1.5, peak_memory=0, queue_time=0.1)
Labels = frozenset[tuple[str, str]]


def scraped(metrics: Metrics) -> dict[tuple[str, Labels], float]:
    """The samples of a rendering, as Prometheus reads them."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def sample(metrics: Metrics, name: str, model: str = "m", **labels: str) -> float:
    return scraped(metrics)[name, frozenset({"model_name": model, "engine": "0", **labels}.items())]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Metrics, ModelMetrics, list[Event]]:
    metrics = Metrics()
    events: list[Event] = []
    serve_some(make_model(tmp_path_factory.mktemp("model")), metrics.of("m"), events)
    return metrics, metrics.of("m"), events


VLLM = """
vllm:num_requests_running vllm:num_requests_waiting vllm:kv_cache_usage_perc vllm:gpu_cache_usage_perc
vllm:prefix_cache_queries_total vllm:prefix_cache_hits_total vllm:gpu_prefix_cache_hits_total
vllm:gpu_prefix_cache_queries_total vllm:gpu_prefix_cache_hit_rate vllm:prompt_tokens_total
vllm:generation_tokens_total vllm:request_success_total vllm:num_preemptions_total vllm:cache_config_info
vllm:spec_decode_num_drafts_total vllm:spec_decode_num_draft_tokens_total vllm:spec_decode_num_accepted_tokens_total
vllm:spec_decode_num_accepted_tokens_per_pos_total
""".split()
TOKEN_BOUNDS = "1.0 2.0 5.0 10.0 20.0 50.0 100.0 200.0 500.0 1000.0 2000.0 5000.0 10000.0 20000.0 50000.0 100000.0"
TOKEN_BOUNDS += " 200000.0 500000.0"
FIRST = "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0 160.0 640.0 2560.0"
NEXT = "0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0"
WHOLE = "0.3 0.5 0.8 1.0 1.5 2.0 2.5 5.0 10.0 15.0 20.0 30.0 40.0 50.0 60.0 120.0 240.0 480.0 960.0 1920.0 7680.0"
STEP = "1.0 8.0 16.0 32.0 64.0 128.0 256.0 512.0 1024.0 2048.0 4096.0 8192.0 16384.0"
BUCKETS = {
    "vllm:time_to_first_token_seconds": FIRST,
    "vllm:inter_token_latency_seconds": NEXT,
    "vllm:e2e_request_latency_seconds": WHOLE,
    "vllm:request_queue_time_seconds": WHOLE,
    "vllm:request_prefill_time_seconds": WHOLE,
    "vllm:request_decode_time_seconds": WHOLE,
    "vllm:request_prompt_tokens": TOKEN_BOUNDS,
    "vllm:request_generation_tokens": TOKEN_BOUNDS,
    "vllm:iteration_tokens_total": STEP,
}


def test_names_labels_and_buckets_are_those_of_vllm(served: tuple[Metrics, ModelMetrics, list[Event]]) -> None:
    found = scraped(served[0])
    names = {name for name, _ in found if name.startswith("vllm:")}
    histograms = {f"{name}_{part}" for name in BUCKETS for part in ("bucket", "count", "sum")}
    assert names == histograms | set(VLLM)
    for name, labels in found:
        if name.startswith("vllm:"):
            assert dict(labels)["model_name"] == "m" and dict(labels)["engine"] == "0"
    for name, bounds in BUCKETS.items():
        found_bounds = [dict(labels)["le"] for sample_name, labels in found if sample_name == f"{name}_bucket"]
        assert found_bounds == [*bounds.split(), "+Inf"], name
    reasons = {dict(labels)["finished_reason"] for name, labels in found if name == "vllm:request_success_total"}
    assert reasons == {"stop", "length", "abort", "error"}
    assert "text/plain" in Metrics.content_type
    types = [line.split()[2:] for line in served[0].render().decode().splitlines() if line.startswith("# TYPE")]
    assert ["vllm:iteration_tokens_total", "histogram"] in types
    assert ["vllm:prompt_tokens_total", "counter"] in types


def test_counts_are_what_the_requests_had(served: tuple[Metrics, ModelMetrics, list[Event]]) -> None:
    metrics, model, events = served
    generated = sum(e.kind == "token" for e in events)
    assert sample(metrics, "vllm:prompt_tokens_total") == 24 * 3 + 20 * 2
    assert sample(metrics, "vllm:generation_tokens_total") == generated > 12 * 4 + 1 + 4
    assert sample(metrics, "vllm:prefix_cache_queries_total") == 24 * 3 + 20 * 2
    assert sample(metrics, "vllm:prefix_cache_hits_total") == 16 * 2  # two blocks each, for the second and the third
    assert sample(metrics, "vllm:gpu_prefix_cache_hit_rate") == 32 / 112
    assert sample(metrics, "vllm:request_success_total", finished_reason="length") == 4
    assert sample(metrics, "vllm:request_success_total", finished_reason="abort") == 1
    assert sample(metrics, "vllm:num_requests_running") == sample(metrics, "vllm:num_requests_waiting") == 0
    assert sample(metrics, "vllm:kv_cache_usage_perc") == 0
    assert sample(metrics, "vllm:request_prompt_tokens_count") == 5
    assert sample(metrics, "vllm:request_generation_tokens_bucket", le="20.0") == 4
    assert sample(metrics, "vllm:time_to_first_token_seconds_count") == 5
    pool = next(e for e in events if e.kind == "pool")
    labels = {"block_size": str(pool.start), "num_gpu_blocks": str(pool.tokens)}
    assert sample(metrics, "vllm:cache_config_info", **labels) == 1
    steps = [e.tokens for e in events if e.kind == "step"]
    assert sample(metrics, "vllm:iteration_tokens_total_sum") == sum(steps)
    assert sample(metrics, "vllm:iteration_tokens_total_count") == len(steps)
    assert not model.unfinished


def test_guesses_are_counted_by_position(served: tuple[Metrics, ModelMetrics, list[Event]]) -> None:
    metrics, _, events = served
    verified = [e for e in events if e.kind == "verify"]
    right = [len(e.blocks) for e in verified]
    assert sum(right) > 0
    assert sample(metrics, "vllm:spec_decode_num_drafts_total") == len(verified)
    assert sample(metrics, "vllm:spec_decode_num_draft_tokens_total") == sum(e.tokens for e in verified)
    assert sample(metrics, "vllm:spec_decode_num_accepted_tokens_total") == sum(right)
    for position in range(max(right)):
        count = sample(metrics, "vllm:spec_decode_num_accepted_tokens_per_pos_total", position=str(position))
        assert count == sum(number > position for number in right)


def test_times_between_tokens_have_no_zeros_of_accepted_guesses(
    served: tuple[Metrics, ModelMetrics, list[Event]],
) -> None:
    metrics, _, events = served
    times: dict[tuple[str, int], list[float]] = {}
    for e in events:
        if e.kind == "token":
            times.setdefault((e.request, e.sequence), []).append(e.time)
    expected = sum(len(set(found)) - 1 for found in times.values())
    assert sample(metrics, "vllm:inter_token_latency_seconds_count") == expected
    total = sum(found[-1] - found[0] for found in times.values())
    assert sample(metrics, "vllm:inter_token_latency_seconds_sum") == pytest.approx(total)


def run_step(scheduler: Scheduler, runner: FakeRunner, beams: Beams, now: float) -> None:
    """Schedule a step, run it and take in its results."""
    step = scheduler.schedule(now)
    results = runner.run(step)
    scheduler.finish(step, results, now)
    advance(beams, scheduler, step, results, now)


def test_gauges_agree_with_the_scheduler_after_each_step() -> None:
    """Through preemptions, several answers, beam searches and cancelled requests, in a pool that is too small."""
    assert sum(map(checked_run, range(8))) > 8


def checked_run(seed: int) -> int:
    """Run random requests and compare after each step. Returns how many sequences were preempted."""
    rng = Random(seed)
    model = ModelMetrics()
    pool = BlockPool(12, 4)
    scheduler = Scheduler(SchedulerConfig(token_budget=16, max_sequences=6), pool, RadixTree(pool), model.event)
    runner, beams = FakeRunner(pool), Beams()
    names: list[str] = []
    for now in range(150):
        if now < 60 and rng.random() < 0.5:
            names.append(f"r{now}")
            width = rng.choice((1, 1, 1, 2))
            params = SamplingParams(max_tokens=rng.randint(1, 9), n=1 if width > 1 else rng.choice((1, 1, 3)))
            params = replace(params, beam_width=width) if width > 1 else params
            prompt = tuple(rng.randrange(3) for _ in range(rng.randint(2, 14)))
            request = Request(names[-1], prompt, params)
            scheduler.add(request, now)
            if request.searches:
                beams.add(request)
        if names and rng.random() < 0.08:
            name = rng.choice(names)
            beams.forget(name)
            scheduler.cancel(name, now)
        if scheduler.has_work:
            run_step(scheduler, runner, beams, now)
        every = [s for group in scheduler.sequences.requests.values() for s in group]
        assert model.census.running == {tuple(s.id) for s in every if s.state is State.RUNNING}
        followers = {f for group in scheduler.sequences.requests.values() for f in group[0].followers}
        waiting = {tuple(s.id) for s in every if s.state is State.WAITING and s not in followers}
        assert waiting <= model.census.waiting
        assert len(model.census.waiting) - len(waiting) <= len(followers)
        assert model.unfinished.keys() == scheduler.sequences.requests.keys()
    assert not scheduler.has_work
    assert sum(model.ended.values()) == len(names)
    assert model.usage == 0 and not model.census.running and not model.census.waiting
    return model.preemptions


def test_usage_is_the_share_of_the_pool_that_running_sequences_hold() -> None:
    model = ModelMetrics()
    pool = BlockPool(10, 4)
    scheduler = Scheduler(SchedulerConfig(token_budget=16, max_sequences=6), pool, RadixTree(pool), model.event)
    runner = FakeRunner(pool)
    scheduler.add(Request("a", (1,) * 9, SamplingParams(max_tokens=2)), 0)
    assert model.usage == 0
    run_step(scheduler, runner, Beams(), 1)
    assert model.usage == 0.3
    run_step(scheduler, runner, Beams(), 2)
    assert model.usage == 0  # its blocks are kept in the prefix tree, and can be evicted
    assert pool.num_free < 10


def test_a_request_without_a_token_has_no_times() -> None:
    metrics = Metrics()
    metrics.of("m").finished(replace(STATS, generated_tokens=0))
    assert sample(metrics, "vllm:time_to_first_token_seconds_count") == 0
    metrics.of("m").finished(STATS)
    assert sample(metrics, "vllm:time_to_first_token_seconds_sum") == 0.3
    assert sample(metrics, "vllm:request_queue_time_seconds_sum") == 0.1
    assert sample(metrics, "vllm:request_prefill_time_seconds_sum") == pytest.approx(0.2)
    assert sample(metrics, "vllm:request_decode_time_seconds_sum") == 1.5
    assert sample(metrics, "vllm:e2e_request_latency_seconds_sum") == 1.8


def test_a_closed_engine_leaves_no_request_behind_and_its_counters_stay() -> None:
    model = ModelMetrics()
    for event in (Event(0.0, "pool", start=4, tokens=10), Event(0.0, "arrival", request="r0", tokens=5)):
        model.event(event)
    for event in (Event(0.1, "admit", request="r0"), Event(0.2, "token", request="r0", start=5, tokens=1)):
        model.event(event)
    model.closed()
    assert (len(model.census.running), model.unfinished, model.ended["abort"]) == (0, {}, 1)
    model.event(Event(0.3, "token", request="r0", start=6, tokens=1))  # no longer known
    model.event(Event(9.0, "pool", start=4, tokens=20))
    assert (model.prompt_tokens, model.generated_tokens, model.num_blocks, model.ended["abort"]) == (5, 2, 20, 1)


def test_models_and_responses_have_labels_of_their_own() -> None:
    metrics = Metrics()
    metrics.of("a").event(Event(0.0, "arrival", request="r0", tokens=5))
    assert metrics.of("a") is metrics.of("a")
    metrics.of('b "quoted"\n')
    metrics.answered("/v1/models/{name}", "GET", 404)
    metrics.answered("/v1/models/{name}", "GET", 404)
    assert sample(metrics, "vllm:num_requests_waiting", "a") == 1
    assert sample(metrics, "vllm:num_requests_waiting", 'b "quoted"\n') == 0
    labels = {"handler": "/v1/models/{name}", "method": "GET", "status": "404"}
    assert scraped(metrics)["http_requests_total", frozenset(labels.items())] == 2
    assert scraped(metrics)["process_resident_memory_bytes", frozenset()] > 0


def calls_of_rendering(metrics: Metrics) -> int:
    """How many functions a rendering calls, in Python and in C."""
    count = 0

    def profiler(_: object, kind: str, __: object) -> None:
        nonlocal count
        count += kind in ("call", "c_call")

    sys.setprofile(profiler)
    try:
        metrics.render()
    finally:
        sys.setprofile(None)
    return count


def calls_after(requests: int) -> int:
    metrics = Metrics()
    model = metrics.of("m")
    for number in range(requests):
        name = f"r{number}"
        model.event(Event(0.0, "arrival", request=name, tokens=5))
        if number % 3:
            model.event(Event(0.1, "admit", request=name))
            for position in range(3):
                model.event(Event(0.2 + position, "token", request=name, start=5 + position, tokens=1))
        if number % 3 == 2:
            model.event(Event(5.0, "finish", request=name, tokens=3, note="stop"))
            model.finished(STATS)
    return calls_of_rendering(metrics)


def test_rendering_costs_the_same_for_one_request_and_for_three_thousand() -> None:
    few, many = calls_after(3), calls_after(3000)
    assert abs(many - few) <= 0.02 * few, (few, many)
