"""Dashboard and alerts: Prometheus itself scrapes our metrics and evaluates every expression."""

import json
import math
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.observed import serve_some
from tests.support import make_model
from tiny_llm.server.metrics import Metrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPARISON = re.compile(r"\s+(>|<|==)\s+[\d.]+")
WORD = re.compile(r"\b(?:vllm:|http_|process_)\w+|\bup\b")
LOCAL = build_opener(ProxyHandler({}))


def panels() -> list[dict[str, Any]]:
    dashboard = json.loads((DEPLOY / "grafana/tiny-llm.json").read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def dashboard_expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def alert_expressions() -> list[str]:
    """The alerts' expressions without their limits, so that they have a value in a healthy server, too."""
    text = (DEPLOY / "prometheus/alerts.yml").read_text()
    found = re.findall(r"^        expr: (?:>-\n)?((?:.+\n)(?: {10}.+\n)*)", text, re.MULTILINE)
    assert len(found) == text.count("alert: ") == 8
    return [COMPARISON.sub("", " ".join(one.split())) for one in found]


def tool(name: str) -> str:
    """The path of Prometheus' program, on the PATH or in .prometheus."""
    found = shutil.which(name) or shutil.which(name, path=str(ROOT / ".prometheus/usr/bin"))
    if found is None:
        pytest.skip(f"{name} is not installed; deploy/README.md says how to install it")
    return found


@contextmanager
def answering(metrics: Metrics) -> Iterator[int]:
    """Serve the metrics on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = metrics.render()
            self.send_response(200)
            self.send_header("Content-Type", metrics.content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Prometheus:
    """A running Prometheus with our configuration, at a faster pace."""

    def __init__(self, folder: Path, target: int):
        shutil.copytree(DEPLOY / "prometheus", folder / "config")
        path = folder / "config/prometheus.yml"
        text = path.read_text().replace("localhost:8000", f"127.0.0.1:{target}")
        text = text.replace("scrape_interval: 5s", "scrape_interval: 250ms\n  scrape_timeout: 250ms")
        path.write_text(text.replace("evaluation_interval: 15s", "evaluation_interval: 500ms"))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/api/v1"
        command = [tool("prometheus"), f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}"]
        command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def get(self, path: str, **query: str) -> Any:
        with LOCAL.open(f"{self.url}/{path}?{urlencode(query)}", timeout=20) as answer:
            return json.load(answer)["data"]

    def values(self, expression: str) -> list[float]:
        return [float(row["value"][1]) for row in self.get("query", query=expression)["result"]]

    def wait(self, expression: str, seconds: float = 60) -> None:
        """Wait until an expression has a value."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if self.values(expression):
                    return
            except OSError:  # not up yet
                assert self.process.poll() is None, "Prometheus ended"
            time.sleep(0.1)
        raise AssertionError(f"no value within {seconds} s: {expression}")


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> Metrics:
    metrics = Metrics()
    metrics.of("m")
    metrics.of("idle")
    return metrics


def use(metrics: Metrics, path: Path) -> None:
    serve_some(path, metrics.of("m"), [])
    for status in (200, 200, 429, 503):
        metrics.answered("/v1/chat/completions", "POST", status)


@pytest.fixture(scope="module")
def prometheus(metrics: Metrics, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus after two bursts of requests: a series that is new begins to have a rate at its second value."""
    tool("prometheus")
    path = make_model(tmp_path_factory.mktemp("model"))
    with answering(metrics) as port:
        found = Prometheus(tmp_path_factory.mktemp("prometheus"), port)
        try:
            found.wait('count_over_time(vllm:num_requests_running{model_name="m"}[1m]) > 2')
            for _ in range(2):
                use(metrics, path)
                tokens = metrics.of("m").generated_tokens
                found.wait(
                    f'count_over_time((vllm:generation_tokens_total{{model_name="m"}} == {tokens})[1m:250ms]) > 2'
                )
            yield found
        finally:
            found.process.terminate()
            found.process.wait()


@pytest.mark.parametrize("expression", dashboard_expressions() + alert_expressions())
def test_an_expression_has_finite_values(prometheus: Prometheus, expression: str) -> None:
    plain = expression.replace("$__rate_interval", "1m").replace("$model_name", "m")
    found = [value for value in prometheus.values(plain) if not math.isnan(value)]  # 0 / 0 of the idle model
    assert found and all(abs(value) < 1e12 for value in found), found


def test_values_are_those_of_the_metrics(prometheus: Prometheus, metrics: Metrics) -> None:
    model = metrics.of("m")
    by_title = {panel["title"]: panel["targets"][0]["expr"] for panel in panels()}

    def value(title: str) -> float:
        plain = by_title[title].replace("$__rate_interval", "1m").replace("$model_name", "m")
        return prometheus.values(plain)[0]

    assert value("Acceptance rate") == pytest.approx(model.accepted / model.drafted)
    assert value("Tokens a draft") == pytest.approx(1 + model.accepted / model.drafts)
    assert value("Prefix cache") == pytest.approx(model.hits / model.queries)
    assert value("Tokens in a step") == pytest.approx(model.step_tokens.sum / sum(model.step_tokens.counts))
    assert prometheus.values('sum(vllm:request_success_total{model_name="m"})') == [10]


def test_every_rule_evaluates_and_the_refusals_fire(prometheus: Prometheus) -> None:
    prometheus.wait('ALERTS{alertname="TinyLlmRefuses"}')
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == 8 and {rule["health"] for rule in rules} == {"ok"}
    states = {rule["name"]: rule["state"] for rule in rules}
    assert states.pop("TinyLlmRefuses") == "pending"  # half of the responses were 429 or 503
    assert set(states.values()) == {"inactive"}


def test_every_metric_and_label_of_an_expression_is_scraped(metrics: Metrics, tmp_path: Path) -> None:
    """Needs no Prometheus: names and labels only."""
    use(metrics, make_model(tmp_path / "model"))
    labels: dict[str, set[str]] = {"up": {"job", "instance"}}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels.setdefault(sample.name, {"job", "instance"}).update(sample.labels)
    for expression in dashboard_expressions() + alert_expressions():
        names = WORD.findall(expression)
        assert names and set(names) <= labels.keys(), expression
        for name, matchers in re.findall(r"([\w:]+)\{(.*?)\}", expression):
            assert {matcher.split("=")[0].strip() for matcher in matchers.split(",")} <= labels[name], expression
        for grouped in re.findall(r"by \((.*?)\)", expression):
            assert any(set(re.split(r", *", grouped)) <= labels[name] for name in names), expression


def test_the_rules_fire_when_they_should_and_only_then() -> None:
    promtool = tool("promtool")
    for check in (["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run([promtool, *check], cwd=DEPLOY / "prometheus", capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_is_one_that_grafana_can_import() -> None:
    dashboard = json.loads((DEPLOY / "grafana/tiny-llm.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) and dashboard["uid"] == "tiny-llm" and "id" not in dashboard
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard["panels"]))) - {"__rate_interval"}
    assert used == variables
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24
        taken |= cells
    assert all(panel["description"] for panel in panels())
