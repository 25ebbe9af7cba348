"""A model that a server runs, in the form in which a conversation uses a model of its own."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tiny_llm.config import EngineConfig, Structured
from tiny_llm.decode.text import Delta
from tiny_llm.engine.answers import Stats
from tiny_llm.engine.speculation import SpeculationCounts
from tiny_llm.model.rendered import Rendered

TIMEOUT = 600  # seconds without anything from the server
CONTEXT = 32_768  # of a model whose server does not say
CHARACTERS = 3  # of a token, for a server that does not count them
OUTPUTS = {"json_schema": "json", "regex": "regex", "lark": "grammar"}  # the server's names of forms
NO_STATS = Stats(0, 0, 0, 0.0, 0.0, 0)


class RemoteTokenizer:
    """The tokenizer of a model at a server: the server renders and counts."""

    templates: Mapping[str, str] = {"default": ""}

    def render(self, messages: Sequence[Mapping[str, Any]], **template: Any) -> Rendered:
        """Return an empty prompt. The answers of `RemoteLLM` open their thought themselves."""
        return Rendered("")

    def encode(self, text: str, *, limit: int | None = None) -> list[int]:
        """Raise ValueError: this is asked only for a text that can't fit into the context."""
        raise ValueError(f"prompt: {len(text)} characters are more than the context of {limit} tokens; shorten it")


class RemoteLLM:
    """A model at a server with the OpenAI API. Raises ValueError where the server can't be reached, or refuses."""

    weights: Mapping[str, Any] = {"layers": []}
    engine_config = EngineConfig()
    speculation = SpeculationCounts()

    def __init__(self, url: str, name: str | None = None, api_key: str | None = None):
        self.url = url.rstrip("/").removesuffix("/v1")
        self._api_key = api_key
        self.tokenizer = RemoteTokenizer()
        self.defaults: dict[str, Any] = {}
        self.last_stats: Stats | None = None
        self._counts = True  # whether the server counts tokens
        found = self._model(name)
        self.name: str = found["id"]
        self.max_context: int = found.get("max_model_len") or CONTEXT

    @property
    def model(self) -> "RemoteLLM":
        """This object: nothing of the model is in this process."""
        return self

    def encode(self, prompt: Sequence[Mapping[str, Any]], template: Mapping[str, Any] | None = None) -> list[int]:
        """Return the tokens of a conversation, or as many zeros where the server does not count them."""
        if self._counts:
            body = {"model": self.name, "messages": list(prompt), "chat_template_kwargs": dict(template or {})}
            try:
                tokens: list[int] = json.load(self._open("/tokenize", body))["tokens"]
                return tokens
            except UnknownPathError:
                self._counts = False
        length = sum(len(message["content"]) for message in prompt)
        return [0] * (length // CHARACTERS)

    def stream(
        self,
        prompt: Sequence[Mapping[str, Any]],
        *,
        template: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Iterator[Delta]:
        """Yield the answer piece by piece, a thought between its tags. Closing early ends the request."""
        body = {"model": self.name, "messages": list(prompt), "stream": True, **api_settings(settings)}
        body["stream_options"] = {"include_usage": True}
        if template:
            body["chat_template_kwargs"] = dict(template)
        self.last_stats = NO_STATS
        begin = time.monotonic()
        thinking = False
        with self._open("/v1/chat/completions", body) as response:
            for chunk in events(response):
                if chunk.get("usage"):
                    self._note(chunk["usage"])
                for choice in chunk["choices"]:
                    delta = choice["delta"]
                    thought = delta.get("reasoning") or delta.get("reasoning_content") or ""
                    text = delta.get("content") or ""
                    if thought and not thinking:
                        thought = f"<think>{thought}"
                    if thinking and text:
                        text = f"</think>{text}"
                    thinking = (thinking or bool(thought)) and not text
                    self._time(begin, time.monotonic())
                    yield Delta(thought + text, finish_reason=choice["finish_reason"])

    def _note(self, usage: Mapping[str, Any]) -> None:
        """Take over the server's count of tokens."""
        assert self.last_stats is not None
        details = usage.get("prompt_tokens_details") or {}
        self.last_stats = replace(
            self.last_stats,
            prompt_tokens=usage["prompt_tokens"],
            cached_tokens=details.get("cached_tokens") or 0,
            generated_tokens=usage["completion_tokens"],
        )

    def _time(self, begin: float, now: float) -> None:
        """Take the time of a piece."""
        stats = self.last_stats
        assert stats is not None
        if not stats.time_to_first_token:
            self.last_stats = replace(stats, time_to_first_token=now - begin)
        else:
            self.last_stats = replace(stats, decode_time=now - begin - stats.time_to_first_token)

    def _model(self, name: str | None) -> dict[str, Any]:
        """Return the server's description of a model, of its first one without a name."""
        models: list[dict[str, Any]] = json.load(self._open("/v1/models"))["data"]
        names = [model["id"] for model in models]
        if name is None and models:
            return models[0]
        if name not in names:
            raise ValueError(f"{self.url}: expected one of its models {', '.join(names)}, found {name!r}")
        return models[names.index(name)]

    def _open(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Send a request and return the response to read. Raises ValueError with the server's own words."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if self._api_key is not None:
            headers["Authorization"] = f"Bearer {self._api_key}"
        try:
            request = urllib.request.Request(f"{self.url}{path}", data, headers)
            return urllib.request.urlopen(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            words = f"{self.url}: {message_of(error.read()) or error}"
            if error.code in (404, 405) and path == "/tokenize":
                raise UnknownPathError(words) from None
            raise ValueError(words) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise ValueError(f"{self.url}: can't reach a server there: {reason}; `tiny-llm serve` starts one") from None


class UnknownPathError(ValueError):
    """The server does not know an endpoint."""


def api_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of decoding as fields of a request."""
    fields = dict(settings)
    form = fields.pop("structured", None)
    if isinstance(form, Structured):
        fields["structured_outputs"] = {OUTPUTS[form.kind]: form.text}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def events(response: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects of an event stream. Raises ValueError for an error in it, and where it ends too early."""
    for line in response:
        text = line.decode().strip()
        if text == "data: [DONE]":
            return
        if not text.startswith("data: "):
            continue
        found = json.loads(text.removeprefix("data: "))
        if "error" in found:
            raise ValueError(found["error"]["message"])
        yield found
    raise ValueError("the server ended the answer in the middle; ask again")


def message_of(body: bytes) -> str:
    """Return the message in the body of an error; "" where there is none."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""
