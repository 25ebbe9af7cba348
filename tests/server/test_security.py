"""Keys, their rates, hosts, origins, and the headers of each response."""

import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import openai
import pytest

from tests.server.conftest import LOCAL, Running, serving
from tiny_llm.server.keys import Key, KeyFile, add_key, read_keys, remove_key
from tiny_llm.server.models import ModelSpec
from tiny_llm.server.rates import Rates
from tiny_llm.server.settings import ServerSettings

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


def test_a_file_holds_hashes_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = add_key(path, "alice", requests_per_minute=5)
    other = add_key(path, "bob")
    assert secret not in path.read_text() and other not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    keys = KeyFile(path)
    assert keys.find(secret).name == "alice" and keys.find(other).name == "bob" and keys.find("x") is None
    remove_key(path, "alice")
    assert keys.find(secret) is None and [key.name for key in read_keys(path)] == ["bob"]
    with pytest.raises(ValueError, match="has a key 'bob' already"):
        add_key(path, "bob")
    with pytest.raises(ValueError, match="has no key 'alice'; it has bob"):
        remove_key(path, "alice")
    with pytest.raises(ValueError, match="key name: expected 1 to 64 letters"):
        add_key(path, "a b")
    path.write_text('{"keys": [{"name": "a", "digest": "x"}]}')
    with pytest.raises(ValueError, match="digest: expected 64 hexadecimal digits"):
        KeyFile(path)


def test_keys_are_asked_for(random_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = add_key(path, "alice")
    with serving(ModelSpec("tiny", str(random_path)), settings=replace(LOCAL, keys_file=path)) as running:
        with running.http() as http:
            missing = http.post("/v1/chat/completions", json=CHAT)
            assert missing.status_code == 401 and missing.headers["www-authenticate"] == "Bearer"
            assert missing.json() == {
                "error": {
                    "message": "You didn't provide an API key: send it in the header Authorization: Bearer YOUR_KEY.",
                    "type": "invalid_request_error",
                    "param": None,
                    "code": None,
                }
            }
            wrong = http.get("/v1/models", headers={"authorization": "Bearer wrong"})
            assert wrong.json() == {
                "error": {
                    "message": "Incorrect API key provided.",
                    "type": "invalid_request_error",
                    "param": None,
                    "code": "invalid_api_key",
                }
            }
            assert http.get("/health").status_code == 200
            assert http.get("/v1/models", headers={"x-api-key": secret}).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            running.client(api_key="wrong").models.list()
        assert [model.id for model in running.client(api_key=secret).models.list()] == ["tiny"]
        remove_key(path, "alice")
        with pytest.raises(openai.AuthenticationError):
            running.client(api_key=secret).models.list()


def test_rates_are_kept() -> None:
    now = [0.0]
    rates = Rates(lambda: now[0])
    key = Key("a", "0" * 64, requests_per_minute=2, tokens_per_minute=100, concurrent=1)

    def ask(tokens: int) -> None:
        with rates.running(key) as meter:
            meter.charge(tokens)

    ask(10)
    ask(10)
    with pytest.raises(Exception, match="your key may use 2 requests per minute. Please try again in 30s") as error:
        ask(1)
    assert error.value.headers == {"Retry-After": "30"} and error.value.kind == "requests"
    now[0] = 60
    ask(250)  # the last request may exceed the limit
    with pytest.raises(Exception, match="your key may use 100 tokens per minute") as error:
        ask(1)
    now[0] += float(error.value.headers["Retry-After"])
    ask(1)
    now[0] += 120
    with rates.running(key), pytest.raises(Exception, match="your key may use 1 concurrent requests"):
        ask(1)
    ask(1)


def test_a_key_beyond_its_rate_gets_429(random_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = add_key(path, "alice", requests_per_minute=1)
    with serving(ModelSpec("tiny", str(random_path)), settings=replace(LOCAL, keys_file=path)) as running:
        client = running.client(api_key=secret)
        client.chat.completions.create(**CHAT)
        with pytest.raises(openai.RateLimitError) as error:
            client.chat.completions.create(**CHAT)
        assert error.value.code == "rate_limit_exceeded" and error.value.type == "requests"
        assert 1 <= int(error.value.response.headers["retry-after"]) <= 60


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "", "localhost.evil.example", "127.0.0.1.nip.io"]
)
def test_a_foreign_host_is_refused(tiny: Running, host: str) -> None:
    """The name of a page may resolve to 127.0.0.1; then its script could read what the server answers."""
    with tiny.http() as http:
        answer = http.get("/v1/models", headers={"host": host})
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "unknown_host"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:99", "127.0.0.1:1", "[::1]:8000"])
def test_its_own_hosts_are_known(tiny: Running, host: str) -> None:
    with tiny.http() as http:
        assert http.get("/v1/models", headers={"host": host}).status_code == 200


def test_pages_may_not_call_unless_allowed(tiny: Running, random_path: Path) -> None:
    origin = {"origin": "https://page.example"}
    with tiny.http() as http:
        for method in ("GET", "POST", "OPTIONS"):
            answer = http.request(method, "/v1/models", headers=origin)
            assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
        assert http.get("/v1/models", headers={"origin": tiny.url}).status_code == 200
    settings = replace(LOCAL, allowed_origins=("https://page.example",), api_key="secret")
    with serving(ModelSpec("tiny", str(random_path)), settings=settings) as running, running.http() as http:
        preflight = http.options("/v1/chat/completions", headers=origin)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == "https://page.example"
        answer = http.get("/v1/models", headers={**origin, "authorization": "Bearer secret"})
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://page.example"


def test_each_response_has_its_headers(tiny: Running) -> None:
    with tiny.http() as http:
        for path in ("/health", "/v1/models", "/nothing", "/docs"):
            headers = http.get(path, headers={"x-request-id": "mine"}).headers
            assert headers["x-request-id"] == "mine"
            assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
            assert "default-src 'none'" in headers["content-security-policy"]
            assert "server" not in headers
        assert http.get("/health", headers={"x-request-id": "a" * 1000}).headers["x-request-id"].startswith("req_")


def test_the_page_of_the_api_needs_no_other_server(tiny: Running) -> None:
    with tiny.http() as http:
        page = http.get("/docs").text
        assert "http://" not in page and "https://" not in page
        assert "/v1/chat/completions" in http.get("/openapi.json").json()["paths"]


def test_public_addresses_need_a_key() -> None:
    with pytest.raises(ValueError, match="0.0.0.0 can be reached from other machines"):
        ServerSettings(host="0.0.0.0")
    assert ServerSettings(host="0.0.0.0", api_key="a").has_keys
    assert not ServerSettings(host="0.0.0.0", without_key=True).is_local
    assert all(ServerSettings(host=host).is_local for host in ("localhost", "127.0.0.2", "::1"))


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tiny_llm", *words], capture_output=True, text=True)


def test_keys_on_the_command_line(tmp_path: Path) -> None:
    path = str(tmp_path / "folder" / "keys.json")
    made = run("keys", "add", "alice", "--file", path, "--tokens-per-minute", "1000", "--weight", "2")
    secret = made.stdout.strip()
    assert made.returncode == 0 and secret.startswith("tl-") and len(secret) > 40
    listed = run("keys", "list", "--file", path)
    assert listed.stdout == "alice\ttokens_per_minute 1000, weight 2\n"
    assert run("keys", "remove", "alice", "--file", path).returncode == 0
    assert run("keys", "list", "--file", path).stdout == ""
    failed = run("keys", "remove", "alice", "--file", path)
    assert failed.returncode == 1 and "has no key 'alice'" in failed.stderr
    public = run("serve", "--host", "0.0.0.0")
    assert public.returncode == 2 and "--without-key" in public.stderr


def test_a_page_that_is_allowed_may_send_the_headers_of_its_client(random_path: Path) -> None:
    """Regression: browsers refused openai's client, which sends x-stainless-lang and others."""
    settings = replace(LOCAL, allowed_origins=("https://page.example",))
    asked = {"origin": "https://page.example", "access-control-request-headers": "authorization,x-stainless-lang"}
    with serving(ModelSpec("tiny", str(random_path)), settings=settings) as running, running.http() as http:
        headers = http.options("/v1/models", headers=asked).headers
    assert headers["access-control-allow-headers"] == "authorization,x-stainless-lang"
    assert "retry-after" in headers["access-control-expose-headers"]


def test_a_file_of_keys_that_becomes_faulty_lets_nobody_in_and_is_not_shown(random_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = {"authorization": f"Bearer {add_key(path, 'alice')}"}
    right = path.read_text()
    settings = replace(LOCAL, keys_file=path)
    with serving(ModelSpec("tiny", str(random_path)), settings=settings) as running, running.http() as http:
        assert http.get("/v1/models", headers=secret).status_code == 200
        path.write_text("{")
        answer = http.get("/v1/models", headers=secret)
        assert answer.status_code == 500 and "keys.json" not in answer.text
        assert answer.json()["error"]["type"] == "server_error"
        path.write_text(right)
        assert http.get("/v1/models", headers=secret).status_code == 200


def test_the_key_of_the_command_line_has_its_name_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    add_key(path, "default")
    assert KeyFile(path).find("x") is None
    with pytest.raises(ValueError, match="the name of --api-key's own key, 'default', is there too"):
        KeyFile(path, "secret")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"allowed_hosts": ("example.com:8000",)}, "allowed_hosts: expected a name or an address"),
        ({"allowed_hosts": ("https://example.com",)}, "allowed_hosts: expected a name or an address"),
        ({"allowed_hosts": ("*",)}, "allowed_hosts: expected a name or an address"),
        ({"allowed_origins": ("https://example.com/",)}, "allowed_origins: expected an origin such as https"),
        ({"allowed_origins": ("example.com",)}, "allowed_origins: expected an origin such as https"),
        ({"cache_per_tenant": True}, "cache_per_tenant: expected keys to tell tenants by"),
    ],
)
def test_a_setting_without_effect_is_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ServerSettings(**given)
    ServerSettings(allowed_hosts=("example.com", "::1", "[fe80::1]", "10.0.0.1"), allowed_origins=("http://[::1]:80",))
