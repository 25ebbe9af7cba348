"""The figures of an answer: lines for a reader, and data for `--json`."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from tiny_llm.engine.answers import Completion, Stats
from tiny_llm.engine.llm import LLM
from tiny_llm.kernels.cpu.build import held_bytes
from tiny_llm.model.expert_store import store_counts
from tiny_llm.views.units import size


def timing(stats: Stats) -> str:
    """Return how fast an answer was, in one line."""
    speed = f"{stats.decode_tps:.1f} tokens/s · " if stats.decode_tps else ""
    return f"{stats.generated_tokens} tokens · {speed}first after {stats.time_to_first_token:.2f} s"


def peak_memory(stats: Stats) -> int:
    """Return the most bytes that a request took: MLX's arrays, and the weights that CPU kernels hold beside them."""
    return stats.peak_memory + held_bytes()


def counts_in_words(llm: LLM) -> list[tuple[str, str]]:
    """Return rows on the experts that stay in the files and on the guesses; no row where a model has none."""
    rows = []
    experts = store_counts(llm.model.weights)
    if experts is not None:
        reads = experts.hits + experts.misses
        memory = f"{experts.hit_rate:.1%} of {reads:,} reads from memory, {size(experts.resident)} kept there"
        rows.append(("experts", memory))
    guesses = llm.speculation
    if guesses.drafts:
        accepted = f"{guesses.acceptance_rate:.0%} of {guesses.drafted:,} guesses accepted"
        steps = f"{guesses.tokens_per_draft:.2f} tokens a step in {guesses.drafts:,} steps with guesses"
        rows.append(("guesses", f"{accepted}, {steps}"))
    return rows


def answer_data(llm: LLM, completions: Sequence[Completion]) -> dict[str, Any]:
    """Return the answers to a prompt and their figures, for JSON."""
    stats = completions[0].stats
    figures = {f.name: getattr(stats, f.name) for f in fields(stats)}
    figures["prefix_miss"] = stats.prefix_miss and stats.prefix_miss._asdict()
    figures |= {"peak_memory": peak_memory(stats), "prefill_tps": stats.prefill_tps, "decode_tps": stats.decode_tps}
    return {
        "model": llm.name,
        "prompt_tokens": stats.prompt_tokens,
        "completions": [completion_data(completion) for completion in completions],
        "stats": figures,
        **counts_data(llm),
    }


def completion_data(completion: Completion) -> dict[str, Any]:
    return {
        "index": completion.index,
        "text": completion.text,
        "tokens": completion.tokens,
        "finish_reason": completion.finish_reason,
        "logprobs": completion.logprobs and list(map(asdict, completion.logprobs)),
    }


def counts_data(llm: LLM) -> dict[str, Any]:
    """Return the counts of `counts_in_words` for JSON. The names of those of guesses are vLLM's."""
    data: dict[str, Any] = {}
    experts = store_counts(llm.model.weights)
    if experts is not None:
        data["experts"] = {**experts._asdict(), "hit_rate": experts.hit_rate}
    guesses = llm.speculation
    if guesses.drafts:
        positions = range(max(guesses.accepted_at, default=-1) + 1)
        data["speculative_decoding"] = {
            "mean_acceptance_length": guesses.tokens_per_draft,
            "draft_acceptance_rate": guesses.acceptance_rate,
            "acceptance_histogram": [guesses.accepted_at[position] for position in positions],
            "num_spec_steps": guesses.drafts,
            "num_draft_tokens": guesses.drafted,
            "num_accepted_draft_tokens": guesses.accepted,
        }
    return data
