"""A model that answers from a script, for what the command line does with answers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from tiny_llm.config import EngineConfig, SamplingParams
from tiny_llm.decode.text import Delta
from tiny_llm.engine.answers import Completion, Stats, join
from tiny_llm.engine.speculation import SpeculationCounts
from tiny_llm.model.rendered import Rendered

Answer = str | Exception | Sequence[str | Callable[[], None]]


class FakeTokenizer:
    """One token a character; chat messages one line each."""

    templates = {"default": ""}  # noqa: RUF012

    def render(self, messages: Sequence[Mapping[str, Any]], **template: Any) -> Rendered:
        lines = "".join(f"{m['role']}: {m['content']}\n" for m in messages)
        prefill = template.get("prefill", "")
        return Rendered(f"{lines}assistant: {prefill}", opens_thought=prefill.endswith("<think>"))


class FakeLLM:
    """Gives the next of `answers`: a text, a list of pieces (a function among them is called there), or an error."""

    name = "fake"
    model = SimpleNamespace(weights={"layers": []})
    speculation = SpeculationCounts()
    engine_config = EngineConfig()

    def __init__(self, *answers: Answer, max_context: int = 10_000):
        self.answers, self.max_context = list(answers), max_context
        self.tokenizer, self.last_stats = FakeTokenizer(), None
        self.defaults: dict[str, Any] = {"top_k": 20}
        self.asked: list[Any] = []
        self.settings: list[dict[str, Any]] = []

    def encode(self, prompt: Any, template: Mapping[str, Any] | None = None) -> list[int]:
        text = prompt if isinstance(prompt, str) else self.tokenizer.render(prompt, **(template or {}))
        return list(map(ord, text))

    def stream(self, prompt: Any, *, template: Mapping[str, Any] | None = None, **settings: Any) -> Iterator[Delta]:
        SamplingParams.resolve(settings, self.defaults)
        self.asked.append([dict(message) for message in prompt] if isinstance(prompt, list) else prompt)
        self.settings.append(settings)
        answer = self.answers.pop(0)
        tokens = self.encode(prompt, template)
        if isinstance(answer, Exception):
            raise answer
        pieces = [*answer] if isinstance(answer, str) else answer
        texts = [piece for piece in pieces if isinstance(piece, str)]
        written = 0
        for piece in pieces:
            if not isinstance(piece, str):
                piece()
                continue
            written += 1
            room = len(tokens) + written < self.max_context
            self.last_stats = Stats(len(tokens), 0, written, 0.25, written / 100, 2_000_000)
            yield Delta(piece, 65, 0, "stop" if written == len(texts) else None if room else "length")
            if not room:
                return

    def generate(self, prompt: Any, *, n: int = 1, **options: Any) -> list[Completion]:
        answers = [list(self.stream(prompt, **options)) for _ in range(n)]
        return [join(deltas, self.last_stats) for deltas in answers]
