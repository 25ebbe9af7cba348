"""Prometheus metrics with vLLM's names, counted from the engine's events and from the times of finished requests.

The engine's thread counts, and any thread renders: `render` reads numbers that are counted already. Its cost depends on
the number of models, not on the number of requests, because routers scrape up to twenty times a second.
"""

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tiny_llm.course import NotDone
from tiny_llm.engine.answers import Stats
from tiny_llm.engine.events import Event

SequenceName = tuple[str, int]

# upper bounds of vLLM's buckets
BELOW_A_SECOND = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75)
FIRST_TOKEN = (*BELOW_A_SECOND, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)
NEXT_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
REQUEST = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
TOKENS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))

REASONS = {"stop": "stop", "length": "length", "cancelled": "abort", "error": "error"}  # ours, and vLLM's


class Histogram:
    """Counts of observed values by bucket, and the sum of the values.

    `bounds` are the buckets' upper bounds, in ascending order. A last bucket without a bound has all larger values.
    """

    def __init__(self, bounds: Sequence[float]):
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value in the first bucket whose bound is not below it. Takes O(log buckets) time."""
        # YOUR CODE (w4.3.1): count a value in its bucket
        raise NotDone("w4.3.1")

    def cumulative(self) -> list[tuple[str, float]]:
        """Return for each bound, as text, how many values are at most as large. The last bound is "+Inf".

        This is the form in which Prometheus reads a histogram: [1, 0, 2] with bounds (0.5, 1) gives 0.5: 1, 1.0: 1
        and +Inf: 3.
        """
        # YOUR CODE (w4.3.2): buckets as Prometheus reads them
        raise NotDone("w4.3.2")


@dataclass
class Census:
    """The sequences that run and the sequences that wait, so that counting them takes O(1) time."""

    running: set[SequenceName] = field(default_factory=set)
    waiting: set[SequenceName] = field(default_factory=set)

    def note(self, event: Event) -> None:
        """Take in an event. It takes O(1) time, and an event of a kind that moves no sequence changes nothing.

        A sequence waits from its arrival on, runs from its admission on, and waits again after it was preempted. It
        may finish in either state. Further answers of a request are admitted without an arrival of their own.
        """
        # YOUR CODE (w4.3.3): which sequences run, and which wait
        raise NotDone("w4.3.3")


@dataclass
class Unfinished:
    """What is known of an unfinished request. `latest` has the time of each answer's last token."""

    prompt_tokens: int
    cached_tokens: int = 0
    generated_tokens: int = 0
    answers: set[int] = field(default_factory=lambda: {0})
    latest: dict[int, float] = field(default_factory=dict)


class ModelMetrics:
    """The figures of one model. `event` is for `Engine(emit=…)`, and `finished` for the server, from any thread."""

    def __init__(self) -> None:
        self.census = Census()
        self.unfinished: dict[str, Unfinished] = {}
        self.block_size = self.num_blocks = self.blocks_in_use = 0
        self.queries = self.hits = self.preemptions = 0
        self.prompt_tokens = self.generated_tokens = 0
        self.drafts = self.drafted = self.accepted = 0
        self.accepted_at: list[int] = []
        self.ended = dict.fromkeys(REASONS.values(), 0)
        self.first_token, self.next_token = Histogram(FIRST_TOKEN), Histogram(NEXT_TOKEN)
        self.queue, self.prefill = Histogram(REQUEST), Histogram(REQUEST)
        self.decode, self.whole = Histogram(REQUEST), Histogram(REQUEST)
        self.prompt_lengths, self.answer_lengths = Histogram(TOKENS), Histogram(TOKENS)
        self.step_tokens = Histogram(STEP_TOKENS)
        self._lock = threading.Lock()  # for what `finished` writes
        self._handlers: dict[str, Callable[[Event], None]] = {
            "pool": self._pool,
            "arrival": self._arrival,
            "admit": self._admit,
            "load": self._load,
            "step": self._step,
            "verify": self._verify,
            "token": self._token,
            "preempt": self._preempt,
            "finish": self._finish,
        }

    def event(self, event: Event) -> None:
        """Count an event of the engine, in the engine's thread. Takes O(1) time."""
        handler = self._handlers.get(event.kind)
        if handler is not None:
            handler(event)

    def finished(self, stats: Stats) -> None:
        """Count the times of a request that has ended. One that ended before its first token has none."""
        if not stats.generated_tokens:
            return
        with self._lock:
            self.first_token.observe(stats.time_to_first_token)
            self.queue.observe(stats.queue_time)
            self.prefill.observe(stats.time_to_first_token - stats.queue_time)
            self.decode.observe(stats.decode_time)
            self.whole.observe(stats.time_to_first_token + stats.decode_time)

    def closed(self) -> None:
        """Forget the unfinished requests, after the engine was closed: it emits no event for them."""
        self.ended["abort"] += len(self.unfinished)
        self.unfinished = {}
        self.census = Census()

    @property
    def usage(self) -> float:
        """The share of the pool's blocks in use by running sequences, 0 to 1, as of the last step."""
        if not self.num_blocks or not self.census.running:
            return 0.0
        return self.blocks_in_use / self.num_blocks

    @property
    def hit_rate(self) -> float:
        """The share of all prompt tokens that were in the prefix cache."""
        return self.hits / self.queries if self.queries else 0.0

    def _pool(self, event: Event) -> None:
        self.closed()
        self.block_size, self.num_blocks = event.start, event.tokens

    def _arrival(self, event: Event) -> None:
        self.census.note(event)
        self.unfinished[event.request] = Unfinished(event.tokens)

    def _admit(self, event: Event) -> None:
        self.census.note(event)
        request = self.unfinished.get(event.request)
        if request is not None:
            request.answers.add(event.sequence)
            if event.sequence == 0:
                request.cached_tokens = event.tokens

    def _load(self, event: Event) -> None:
        request = self.unfinished.get(event.request)
        if request is not None and event.sequence == 0:
            request.cached_tokens += event.tokens

    def _step(self, event: Event) -> None:
        self.blocks_in_use = event.start
        self.step_tokens.observe(event.tokens)

    def _verify(self, event: Event) -> None:
        right = len(event.blocks)
        self.drafts += 1
        self.drafted += event.tokens
        self.accepted += right
        while len(self.accepted_at) < right:
            self.accepted_at.append(0)
        for position in range(right):
            self.accepted_at[position] += 1

    def _token(self, event: Event) -> None:
        self.generated_tokens += 1
        request = self.unfinished.get(event.request)
        if request is None:
            return
        if not request.latest:  # the prompt is computed
            self.prompt_tokens += request.prompt_tokens
            self.queries += request.prompt_tokens
            self.hits += request.cached_tokens
        request.generated_tokens += 1
        before = request.latest.get(event.sequence)
        if before is not None and event.time > before:  # accepted guesses come together
            self.next_token.observe(event.time - before)
        request.latest[event.sequence] = event.time

    def _preempt(self, event: Event) -> None:
        self.census.note(event)
        self.preemptions += 1

    def _finish(self, event: Event) -> None:
        """End an answer. The request ends with its last one, for that one's reason."""
        self.census.note(event)
        request = self.unfinished.get(event.request)
        if request is None:
            return
        request.answers.discard(event.sequence)
        if not request.answers:
            del self.unfinished[event.request]
            self.ended[REASONS[event.note]] += 1
            self.prompt_lengths.observe(request.prompt_tokens)
            self.answer_lengths.observe(request.generated_tokens)


Read = Callable[[ModelMetrics], float]
GAUGES: dict[str, tuple[str, Read]] = {
    "vllm:num_requests_running": ("Sequences in the running batch.", lambda m: len(m.census.running)),
    "vllm:num_requests_waiting": ("Sequences that wait to be admitted.", lambda m: len(m.census.waiting)),
    "vllm:kv_cache_usage_perc": ("Share of the KV cache in use, 0 to 1.", lambda m: m.usage),
    "vllm:gpu_cache_usage_perc": ("Older name of vllm:kv_cache_usage_perc.", lambda m: m.usage),
    "vllm:gpu_prefix_cache_hit_rate": ("Share of prompt tokens found in the prefix cache.", lambda m: m.hit_rate),
}
COUNTERS: dict[str, tuple[str, Read]] = {
    "vllm:prefix_cache_queries": ("Prompt tokens looked up in the prefix cache.", lambda m: m.queries),
    "vllm:prefix_cache_hits": ("Prompt tokens found in the prefix cache.", lambda m: m.hits),
    "vllm:gpu_prefix_cache_queries": ("Older name of vllm:prefix_cache_queries.", lambda m: m.queries),
    "vllm:gpu_prefix_cache_hits": ("Older name of vllm:prefix_cache_hits.", lambda m: m.hits),
    "vllm:prompt_tokens": ("Prompt tokens of the requests whose prompt was computed.", lambda m: m.prompt_tokens),
    "vllm:generation_tokens": ("Generated tokens.", lambda m: m.generated_tokens),
    "vllm:num_preemptions": ("Sequences that lost their blocks and waited again.", lambda m: m.preemptions),
    "vllm:spec_decode_num_drafts": ("Drafts that were verified.", lambda m: m.drafts),
    "vllm:spec_decode_num_draft_tokens": ("Tokens in these drafts.", lambda m: m.drafted),
    "vllm:spec_decode_num_accepted_tokens": ("Drafted tokens that were accepted.", lambda m: m.accepted),
}
HISTOGRAMS: dict[str, tuple[str, Callable[[ModelMetrics], Histogram]]] = {
    "vllm:time_to_first_token_seconds": ("From arrival to the first token.", lambda m: m.first_token),
    "vllm:inter_token_latency_seconds": ("Between two tokens of an answer.", lambda m: m.next_token),
    "vllm:e2e_request_latency_seconds": ("From arrival to the last token.", lambda m: m.whole),
    "vllm:request_queue_time_seconds": ("From arrival to admission.", lambda m: m.queue),
    "vllm:request_prefill_time_seconds": ("From admission to the first token.", lambda m: m.prefill),
    "vllm:request_decode_time_seconds": ("From the first token to the last.", lambda m: m.decode),
    "vllm:request_prompt_tokens": ("Prompt tokens of a request.", lambda m: m.prompt_lengths),
    "vllm:request_generation_tokens": ("Generated tokens of a request, all answers.", lambda m: m.answer_lengths),
    "vllm:iteration_tokens_total": ("Tokens in a step.", lambda m: m.step_tokens),
}
LABELS = ("model_name", "engine")


class Metrics(Collector):
    """The metrics of all models, for `/metrics`. Each model has its own `ModelMetrics`."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._models: dict[str, ModelMetrics] = {}
        self._answers: dict[tuple[str, str, str], int] = {}
        self._lock = threading.Lock()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def of(self, model_name: str) -> ModelMetrics:
        """Return the figures of a model, which stay when its engine is closed and made again."""
        with self._lock:
            return self._models.setdefault(model_name, ModelMetrics())

    def answered(self, handler: str, method: str, status: int) -> None:
        """Count an HTTP response. `handler` is the route's pattern, never the path that a client has chosen."""
        labels = (handler, method, str(status))
        with self._lock:
            self._answers[labels] = self._answers.get(labels, 0) + 1

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format. Takes time in proportion to the number of models."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the families of metrics, each with a line for each model."""
        with self._lock:
            models = [((name, "0"), model) for name, model in self._models.items()]
            answers = list(self._answers.items())
        for kind, figures in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for name, (text, read) in figures.items():
                numbers = kind(name, text, labels=LABELS)
                for labels, model in models:
                    numbers.add_metric(labels, read(model))
                yield numbers
        for name, (text, find) in HISTOGRAMS.items():
            family = HistogramMetricFamily(name, text, labels=LABELS)
            for labels, model in models:
                histogram = find(model)
                family.add_metric(labels, histogram.cumulative(), histogram.sum)
            yield family
        yield from _labelled(models)
        responses = CounterMetricFamily("http_requests", "HTTP responses.", labels=("handler", "method", "status"))
        for found, count in answers:
            responses.add_metric(found, count)
        yield responses


def _labelled(models: Sequence[tuple[tuple[str, str], ModelMetrics]]) -> Iterator[Metric]:
    """Yield the families with a label more than the others have."""
    ended = CounterMetricFamily("vllm:request_success", "Requests that ended.", labels=(*LABELS, "finished_reason"))
    name, text = "vllm:spec_decode_num_accepted_tokens_per_pos", "Drafts whose token at the position was accepted."
    accepted = CounterMetricFamily(name, text, labels=(*LABELS, "position"))
    name, text = "vllm:cache_config_info", "Size of the KV cache; the value is 1."
    sizes = GaugeMetricFamily(name, text, labels=(*LABELS, "block_size", "num_gpu_blocks"))
    for labels, model in models:
        for reason, count in model.ended.items():
            ended.add_metric((*labels, reason), count)
        for position, count in enumerate(model.accepted_at):
            accepted.add_metric((*labels, str(position)), count)
        sizes.add_metric((*labels, str(model.block_size), str(model.num_blocks)), 1)
    yield from (ended, accepted, sizes)
