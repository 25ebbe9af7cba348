"""The "Measure" tables of week 3: the scheduler on a simulated clock, beside a bound that no policy can beat.

    python bench/week3.py [--chapter 3.1] [--code mine] [--json] [--write]

As bench/week1.py does it. The clock is `engine.simulate`'s: a step takes 4 ms, and 0.2 ms more for each token. So the
figures are the same on every machine, and with your code they are its own. 3.3 counts memory, 3.4 what a kernel asks,
3.6 the bytes of the experts that are read, 3.7 the tokens of a step of pocket, a count that depends on its weights, 3.8
the guesses accepted of a model and a drafter with 40 tokens, 3.9 the tokens of a step with heads, which are those in
heads/medusa and heads/eagle (`tiny-llm train`) where there are such folders, otherwise those that ship with pocket,
3.12 the questions on the book of which a search by words finds the answer, and 3.13 attacks on an agent.
"""

import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.hidden_bugs import heads_of  # noqa: E402
from bench.week1 import Count, Makers, main  # noqa: E402
from tiny_llm.config import SamplingParams, SchedulerConfig  # noqa: E402

if TYPE_CHECKING:
    from tiny_llm.engine.request import Request, Step
    from tiny_llm.engine.simulate import SimulatedAnswer
    from tiny_llm.model.moe import Routing

Array = npt.NDArray[Any]
STEP, TOKEN, SLOTS, MS = 0.004, 0.0002, 8, "milliseconds"
LOOK, KEPT = 1e-7, 0.06  # seconds for each earlier token that a token looks at, and those that a step shall take


def serve(
    requests: "list[Request]", budget: int = 64, tree: bool = False, slots: int = SLOTS
) -> "list[SimulatedAnswer]":
    from tiny_llm.engine import blocks, radix, scheduler, simulate  # not before the learner's files are in place

    pool = blocks.BlockPool(8000, 16)
    config = SchedulerConfig(budget, slots, 20_000)
    engine = scheduler.Scheduler(config, pool, radix.RadixTree(pool) if tree else None)
    return simulate.simulate(engine, requests, simulate.Cost(STEP, TOKEN, 0.0))


def ask(name: int, length: int, output: int, arrival: float = 0.0, shared: int = 0) -> "Request":
    from tiny_llm.engine.request import Request

    tokens = (*range(shared), *range(10_000 * (name + 1), 10_000 * (name + 1) + length - shared))
    return Request(str(name), tokens, SamplingParams(max_tokens=output), arrival=arrival)


def many() -> "list[Request]":
    """64 requests at once: short prompts, answers of 4 to 200 tokens."""
    random = Random(0)
    return [ask(i, 16, random.choice((4, 10, 20, 40, 200))) for i in range(64)]


def in_batches(requests: "list[Request]") -> tuple[float, float]:
    """Static batching: eight at a time, each batch as long as its longest answer. Last and mean end, in seconds."""
    now, ends = 0.0, list[float]()
    for i in range(0, len(requests), SLOTS):
        batch = requests[i : i + SLOTS]
        outputs = [r.params.max_tokens for r in batch]
        now += STEP + TOKEN * sum(len(r.tokens) for r in batch)
        now += sum(STEP + TOKEN * SLOTS for _ in range(max(outputs) - 1))
        ends += [now] * len(batch)
    return now, sum(ends) / len(ends)


def batching() -> Iterator[Count]:
    requests = many()
    tokens = sum(len(r.tokens) for r in requests)
    decodes = sum(r.params.max_tokens - 1 for r in requests)
    least = TOKEN * (tokens + decodes) + STEP * decodes / SLOTS
    longest = max(r.params.max_tokens for r in requests) * (STEP + TOKEN)

    def ends() -> list[float]:
        return [a.finished or 0.0 for a in serve(requests)]

    yield Count("static batches of 8, the last answer", lambda: in_batches(requests)[0] * 1e3, least * 1e3, MS)
    yield Count("continuous on 8 slots, the last answer", lambda: max(ends()) * 1e3, least * 1e3, MS)
    yield Count("continuous on 64 slots, the last answer", lambda: wide(requests) * 1e3, longest * 1e3, MS)
    mean = sum(r.params.max_tokens for r in requests) / len(requests) * (STEP + TOKEN)
    yield Count("static batches of 8, mean answer", lambda: in_batches(requests)[1] * 1e3, mean * 1e3, MS)
    yield Count("continuous on 8 slots, mean answer", lambda: sum(ends()) / len(requests) * 1e3, mean * 1e3, MS)


def wide(requests: "list[Request]") -> float:
    return max(a.finished or 0.0 for a in serve(requests, slots=64))


def budgets() -> Iterator[Count]:
    """One that decodes, and a prompt of 4,000 tokens that comes in between."""
    requests = [ask(0, 8, 100), ask(1, 4000, 4, arrival=0.05)]
    decode = (STEP + TOKEN) * 1e3
    prompt = (STEP + TOKEN * 4000) * 1e3
    for budget in (64, 256, 1024, 5000):
        yield Count(f"longest gap, budget {budget}", lambda b=budget: max(serve(requests, b)[0].gaps) * 1e3, decode, MS)
        yield Count(f"long prompt, budget {budget}", lambda b=budget: serve(requests, b)[1].first * 1e3, prompt, MS)
    yield from paces()


def paces() -> Iterator[Count]:
    """A prompt of 8,000 tokens, each of which takes longer, the more there are before it."""
    bound = KEPT * 1e3
    for name, seconds in (("budget 256", None), (f"{KEPT * 1e3:.0f} ms", KEPT)):
        yield Count(f"8,000 tokens: first gap, {name}", lambda s=seconds: long_gaps(s)[0] * 1e3, bound, MS)
        yield Count(f"8,000 tokens: longest gap, {name}", lambda s=seconds: max(long_gaps(s)) * 1e3, bound, MS)


def long_gaps(seconds: float | None) -> list[float]:
    """The gaps of one that decodes beside that prompt: with a budget of 256, or with one that follows the clock."""
    from tiny_llm.engine import blocks, controller, scheduler, simulate

    config = SchedulerConfig(256 if seconds is None else 4096, SLOTS, 20_000)
    engine = scheduler.Scheduler(config, blocks.BlockPool(8000, 16))
    cost = simulate.Cost(STEP, TOKEN, LOOK)
    flat = {tokens: STEP + TOKEN * tokens for tokens in (1, 64, 256, 1024, 4096)}
    pace = controller.Pace(controller.Profile(flat), seconds or 0.0, SLOTS, 4096)

    def keep(step: "Step", now: float) -> None:
        pace.note(step.num_tokens, cost.of(step))
        engine.set_limits(pace.token_budget, SLOTS)

    if seconds is not None:
        engine.set_limits(pace.token_budget, SLOTS)
    decodes, _ = simulate.simulate(
        engine, [ask(0, 8, 200), ask(1, 8000, 4, arrival=0.05)], cost, watch=None if seconds is None else keep
    )
    return [gap for gap in decodes.gaps if gap > 0.02]  # those in which a chunk lies


def prefixes() -> Iterator[Count]:
    """32 requests with the same first 1,000 tokens, one after the other or all at once."""
    apart = [ask(i, 1020, 4, arrival=2.0 * i, shared=1000) for i in range(32)]
    at_once = [ask(i, 1020, 4, shared=1000) for i in range(32)]
    cold, warm = ((STEP + TOKEN * n) * 1e3 for n in (1020, 20))
    yield Count("first token, nothing known", lambda: serve(apart, 256)[1].first * 1e3, cold, MS)
    yield Count("first token, prefix known", lambda: serve(apart, 256, tree=True)[1].first * 1e3, warm, MS)
    least = (TOKEN * (1000 + 32 * 20)) * 1e3
    yield Count("32 at once, without a tree", lambda: last_first(serve(at_once, 256)) * 1e3, least, MS)
    yield Count("32 at once, with a tree", lambda: last_first(serve(at_once, 256, tree=True)) * 1e3, least, MS)


def last_first(answers: "list[SimulatedAnswer]") -> float:
    """When the last one's first token comes."""
    return max(answer.first for answer in answers)


def paging() -> Iterator[Count]:
    """K and V of 32 sequences in a Qwen3-0.6B in 16 bits, 112 KB a token; and what a write takes beside its pool."""
    lengths = [Random(i).randint(20, 2000) for i in range(32)]
    token = 2 * 28 * 8 * 128 * 2 / 1e6
    least = sum(lengths) * token
    yield Count("room for 4,096 tokens each", lambda: 32 * 4096 * token, least, "megabytes")
    yield Count("padded to the longest", lambda: 32 * max(lengths) * token, least, "megabytes")
    for size in (256, 32, 16):
        held = sum(-(-length // size) * size for length in lengths)
        yield Count(f"blocks of {size}", lambda held=held: held * token, least, "megabytes")
    yield Count("beside a pool of 64 MB, for a write into it", write_of_eight, 0.0, "megabytes")


def write_of_eight() -> float:
    """The most memory that one layer's write takes beside what was there, in megabytes: a copy would show."""
    import mlx.core as mx

    from tests.support import make_config
    from tiny_llm.cache.paged import PagedPool
    from tiny_llm.config import ModelConfig
    from tiny_llm.model.ops import PLAIN

    shape = {"num_hidden_layers": 1, "num_key_value_heads": 8, "num_attention_heads": 8, "head_dim": 128}
    pool = PagedPool(ModelConfig.from_hf(make_config("qwen3", "float32", shape)), PLAIN, 256, 32)
    row, at = mx.ones((8, 8, 128)), mx.arange(8)
    mx.eval(row, at)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    pool.write(0, at * 3, at, row, row)
    mx.eval(pool.state)
    return (mx.get_peak_memory() - before) / 1e6


def paged_kernel() -> Iterator[Count]:
    """One token's attention over 512 keys of a sequence, D 128, in 32 bits."""
    import mlx.core as mx

    from bench.week2 import traffic
    from tiny_llm.kernels.catalog import paged_decode_arguments
    from tiny_llm.kernels.paged_attention import paged_decode_parts

    def through(name: str, heads: int, kv_heads: int, block: int) -> Count:
        arguments = paged_decode_arguments(mx.float32, heads, kv_heads, 128, [512], block, 0, 0)
        return traffic(name, paged_decode_parts, *arguments)

    alone = through("4 query heads, each with its own keys, blocks of 16", 4, 4, 16)
    shared = through("4 query heads over one, blocks of 16", 4, 1, 16)
    kv = 2 * 512 * 128 * 4 / 1e3
    yield alone
    yield shared
    yield through("4 query heads over one, blocks of 64", 4, 1, 64)
    yield Count("gathered first: read, written, read", lambda: shared.call() + 2 * kv, shared.least, "kilobytes")


def experts() -> Iterator[Count]:
    """What a step reads of the experts in one layer of Qwen3-30B-A3B in 4 bits: 8 of 128 a token, by random logits."""
    size = 3 * 2048 * 768 * 4.5 / 8 / 1e6
    for tokens in (1, 8, 32, 512):
        choices, distinct = 8 * tokens, len(set(routed(tokens)))
        label = f"{tokens} token{'s' if tokens > 1 else ''}"
        yield Count(f"{label}, an expert for each choice", lambda n=choices: n * size, distinct * size, "megabytes")
        yield Count(f"{label}, sorted", lambda n=tokens: reads_of(n) * size, distinct * size, "megabytes")


def routed(tokens: int) -> list[int]:
    """Return the experts of all choices of a step."""
    return [expert for chosen in routing_of(tokens).experts.tolist() for expert in chosen]


def routing_of(tokens: int) -> "Routing":
    import mlx.core as mx

    from tiny_llm.config.moe import MoeConfig
    from tiny_llm.model import moe

    logits = mx.random.normal((tokens, 128), key=mx.random.key(tokens))
    return moe.route(logits, MoeConfig(128, 8, 4, normalize=True, layers=(0,)))


def reads_of(tokens: int) -> int:
    """Return how often `sorted_experts` goes on to another expert. A row's gate tells its expert, in tiny ones."""
    import mlx.core as mx

    from tiny_llm.model import moe, ops

    seen: list[float] = []

    def swiglu(gate_up: mx.array) -> mx.array:
        seen.extend(gate_up[..., 0].tolist())
        return gate_up[..., :1]

    gate_up = mx.stack([mx.arange(128.0), mx.ones(128)], axis=1)[..., None]  # (128, 2, 1)
    w = {"gate_up_proj": {"weight": gate_up}, "down_proj": {"weight": mx.ones((128, 1, 1))}}
    mx.eval(moe.sorted_experts(mx.ones((tokens, 1)), routing_of(tokens), w, ops.PLAIN._replace(swiglu=swiglu)))
    return 1 + sum(a != b for a, b in pairwise(seen))


def drafting() -> Iterator[Count]:
    """Tokens of a step that verifies a draft, greedy. All guesses right would give one more than there are."""
    from bench.speculative import PROMPTS

    asked = {"questions": PROMPTS["FAQ"], "counting and repeating": PROMPTS["text work"]}
    for kind, prompts in asked.items():
        yield Count(f"{kind}, suffix", lambda p=prompts: tokens_a_step("suffix", p), 9, "tokens a step")
        yield Count(f"{kind} again, suffix", lambda p=prompts: tokens_a_step("suffix", p, before=p), 9, "tokens a step")
        yield Count(f"{kind}, draft model", lambda p=prompts: tokens_a_step("draft", p), 5, "tokens a step")


def growing() -> Iterator[Count]:
    """Tokens of a step that verifies guesses of heads, greedy: few guesses and many, in chains and in trees."""
    from bench.speculative import PROMPTS

    asked = {"questions": PROMPTS["FAQ"], "counting and repeating": PROMPTS["text work"]}
    shapes = {
        "Medusa, 3 guesses": ("medusa", {"max_draft": 3}, 4),
        "Medusa, 12 guesses": ("medusa", {"max_draft": 12}, 4),
        "EAGLE, a chain of 4": ("eagle", {"max_draft": 4, "beams": 1}, 5),
        "EAGLE, 12 guesses on 4 levels": ("eagle", {"max_draft": 12, "beams": 4}, 5),
    }
    for kind, prompts in asked.items():
        for name, (drafter, settings, bound) in shapes.items():
            settings = {"model": heads_of(drafter), "p_min": 0.01, **settings}
            yield Count(
                f"{kind}, {name}",
                lambda d=drafter, p=prompts, s=settings: tokens_a_step(d, p, **s),
                bound,
                "tokens a step",
            )


def tokens_a_step(drafter: str, prompts: Sequence[str], before: Sequence[str] = (), **settings: Any) -> float:
    """Answer `prompts` one after the other, with earlier answers to the prompts `before`."""
    from tiny_llm import load
    from tiny_llm.config import EngineConfig
    from tiny_llm.config.speculation import SpeculationConfig

    speculation = SpeculationConfig(drafter, adaptive=False, **settings)  # type: ignore[arg-type]
    llm = load(config=EngineConfig(speculation=speculation))
    params = SamplingParams(temperature=0.0, max_tokens=160)
    for prompt in before:
        llm.generate([{"role": "user", "content": prompt}], params)
    drafts, accepted = llm.speculation.drafts, llm.speculation.accepted
    for prompt in prompts:
        llm.generate([{"role": "user", "content": prompt}], params)
    return 1 + (llm.speculation.accepted - accepted) / (llm.speculation.drafts - drafts)


def accepting() -> Iterator[Count]:
    """Of 100 guesses the accepted ones, by rule and by how the guess is made. No rule accepts more than the bound."""
    for name, temperature in (("peaked", 0.2), ("flat", 1.0)):
        p, q = two_models(temperature)
        overlap, best = 100 * float(np.minimum(p, q).sum()), 100 * float(p.max())
        both = 100 * float(np.minimum(p, 1 - np.array([missed(q, token) for token in range(len(q))])).sum())
        yield Count(f"{name}, likeliest guess, rule A", lambda p=p, q=q: by_rule_a(p, q, "likeliest"), best, GUESSES)
        yield Count(
            f"{name}, drawn with other numbers, rule A", lambda p=p, q=q: by_rule_a(p, q, "own"), overlap, GUESSES
        )
        yield Count(
            f"{name}, drawn with the same numbers, rule A", lambda p=p, q=q: by_rule_a(p, q, "same"), overlap, GUESSES
        )
        yield Count(f"{name}, drawn, rule B", lambda p=p, q=q: by_rule_b(p, q, 1), overlap, GUESSES)
        yield Count(f"{name}, two siblings, rule B", lambda p=p, q=q: by_rule_b(p, q, 2), both, GUESSES)


GUESSES, DRAWS = "guesses of 100", 10_000


def two_models(temperature: float) -> tuple[Array, Array]:
    """The distributions of a model and of a drafter that is often right."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=40) * 1.5
    guessed = logits + rng.normal(size=40) * 0.5
    p, q = np.exp(logits / temperature), np.exp(guessed / temperature)
    return p / p.sum(), q / q.sum()


def missed(q: Array, token: int) -> float:
    """The probability that a token is not among two that are drawn from q without replacement."""
    others = [x for other, x in enumerate(q) if other != token]
    return float(sum(x * (1 - x - q[token]) / (1 - x) for x in others))


def drawn(p: Array, uniform: float) -> int:
    return min(int(np.searchsorted(np.cumsum(p), uniform, side="right")), len(p) - 1)


def by_rule_a(p: Array, q: Array, how: str) -> float:
    from tiny_llm.decode.acceptance import DraftTree, accepted

    rng, count = np.random.default_rng(1), 0
    for uniform, own in rng.random((DRAWS, 2)):
        guess = int(np.argmax(q)) if how == "likeliest" else drawn(q, own if how == "own" else uniform)
        count += len(accepted(DraftTree.chain([guess]), [drawn(p, uniform), 0]))
    return 100 * count / DRAWS


def by_rule_b(p: Array, q: Array, siblings: int) -> float:
    from tiny_llm.decode.acceptance import DraftTree, accepted_of_drawn

    rng, count = np.random.default_rng(1), 0
    for _ in range(DRAWS):
        tokens = rng.choice(len(q), size=siblings, replace=False, p=q)
        tree = DraftTree(tuple(tokens.tolist()), (-1,) * siblings)
        uniforms = rng.random(siblings)
        kept, _ = accepted_of_drawn(tree, lambda _: p, lambda _: q, lambda child: uniforms[child])  # noqa: B023
        count += len(kept)
    return 100 * count / DRAWS


def retrieving() -> Iterator[Count]:
    """Of 100 questions on the book those of which one of the first five chunks holds the answer, by chunks' sizes."""
    for size, overlap in ((50, 0), (100, 25), (200, 50), (400, 0), (400, 100), (800, 200)):
        name = f"chunks of {size} tokens, {overlap} shared"
        yield Count(name, lambda size=size, overlap=overlap: found_in_five(size, overlap), 100, "questions of 100")


def found_in_five(size: int, overlap: int) -> float:
    from tempfile import TemporaryDirectory

    from tiny_llm.apps.rag import chunks, evaluate, index, retriever
    from tiny_llm.engine.llm import POCKET
    from tiny_llm.model.tokenizer import Tokenizer

    with TemporaryDirectory() as folder:
        made = index.Index(Path(folder))
        count_tokens = chunks.counter(Tokenizer.from_dir(POCKET))
        made.add(evaluate.book_pages(ROOT / "book" / "src"), chunks.ChunkSettings(size, overlap), count_tokens)
        figures = evaluate.retrieval_figures(retriever.Retriever(made), evaluate.questions_on("book"))
        made.close()
    return 100 * float(figures["recall_at_5"])


def agents() -> Iterator[Count]:
    """Of the 60 injections of bench/agent.py those that reach their aim with a model that obeys every text."""
    from bench.agent import Outcome, Walker, judge
    from bench.agent_tasks import injections

    def obey(guarded: bool) -> list[Outcome]:
        outcomes = []
        for task in injections():
            assert task.attack is not None
            calls = [(call.name, call.arguments) for call in task.calls]
            walker = Walker([*calls, *task.attack.calls], task.answer)
            outcomes.append(judge(walker, task, guarded))
        return outcomes

    unit = "of 60 injections"
    yield Count("reach their aim, all calls approved", lambda: sum(each.attacked for each in obey(False)), 60, unit)
    yield Count("stopped, a user is asked", lambda: sum(not each.attacked for each in obey(True)), 60, unit)
    yield Count("questions answered, a user is asked", lambda: sum(each.passed for each in obey(True)), 60, unit)


MAKERS: Makers = {
    "3.1": batching,
    "3.2": budgets,
    "3.3": paging,
    "3.4": paged_kernel,
    "3.5": prefixes,
    "3.6": experts,
    "3.7": drafting,
    "3.8": accepting,
    "3.9": growing,
    "3.12": retrieving,
    "3.13": agents,
}


if __name__ == "__main__":
    main(MAKERS, __doc__)
