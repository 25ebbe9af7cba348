"""The model card that lies beside the pocket model's weights, written from its figures."""

from collections.abc import Iterator, Mapping
from typing import Any

ROWS = {
    "tool_call": "tool calls: right tool and arguments, no call where none fits",
    "tool_answer": "answer, second call or recovery after a tool's result",
    "builtin_call": "calls of the agent's built-in tools, alone and in chains",
    "context_answer": "answer from 1 to 5 passages with the passage's number",
    "context_absent": "says so when the passages do not",
    "needle_512": "a fact hidden in 512 tokens",
    "needle_2048": "a fact hidden in 2,048 tokens",
    "faq": "questions on LLM inference, in phrasings not trained on",
    "multi_turn": "remembers what was said turns ago",
    "text": "copying, listing, counting, reversing, JSON",
    "think": "sums with working in a think block",
    "loop_rate": "open prompts whose answer does not end within 600 tokens",
}

CARD = """---
license: apache-2.0
language: en
library_name: mlx
---
# Pocket ({name})

A {family} of {params:,} parameters, trained from scratch by the tiny-llm project on text that its own generator makes
up. It shows what an inference engine does, offline and at once; it knows nothing of the world. For real work use a
larger model: `tiny-llm chat --model qwen3-0.6b`.

| | |
|---|---|
| layers | {layers}, hidden size {hidden}, {mlp} |
| attention | {heads} heads of {head_dim}, {kv_heads} KV heads |
| vocabulary | {vocab:,}, embeddings tied |
| file | {bytes:,} bytes, bfloat16 |
| training | {tokens:,} tokens, runs one after the other: {runs} |
| data | made by `tiny_llm/pocket/lessons/` from a seed; no other text |
| licence | Apache-2.0, weights and data |

`tiny-llm pocket train --size {name}` makes such a model in one run, `--after DIR` goes on from a trained one;
`tiny-llm pocket eval` measures it.

## Results

Exact match of greedy answers, {number} cases a task. Names, numbers, tool schemas and phrasings are held out from
training.

| task | share |
|---|---|
{results}

## Limits

English only. It answers what it was drilled in and makes up the rest; long lists, unusual wording and sums of many
digits fail. It reads up to 4,096 tokens but was trained on at most {longest:,}.
"""


def runs(made: Mapping[str, Any]) -> Iterator[str]:
    """The training runs behind a model, the first one first."""
    if "after" in made:
        yield from runs(made["after"])
    run = f"{made['steps']:,} steps by recipe `{made['recipe']}`"
    grown = made.get("grown", {})
    sizes = []
    for name, (before, now) in grown.items():
        sizes.append(f"{before} → {now} {name}")
    if sizes:
        run += f" (grown first: {', '.join(sizes)})"
    yield run


def mlp_of(size: Mapping[str, Any]) -> str:
    """Say how wide a layer's MLP is, or how many experts it has."""
    if "num_experts" not in size:
        return f"MLP {size['intermediate_size']}"
    experts, chosen = size["num_experts"], size["num_experts_per_tok"]
    return f"{experts} experts of {size['moe_intermediate_size']} each, {chosen} of them chosen for a token"


def model_card(
    name: str, size: Mapping[str, Any], made: Mapping[str, Any], figures: Mapping[str, Any], number: int, longest: int
) -> str:
    """README.md of a model directory. `size` has config.json's fields, `made` those of pocket.json."""
    rows = [f"| {meaning} | {figures[task]:.3f} |" for task, meaning in ROWS.items() if task in figures]
    if figures.get("acceptance") is not None:
        rows.append(f"| tokens of the target that the draft would have proposed | {figures['acceptance']:.3f} |")
    return CARD.format(
        name=name,
        family="Qwen3 with experts" if "num_experts" in size else "Qwen3",
        params=made["params"],
        tokens=made["tokens"],
        runs=", ".join(runs(made)),
        layers=size["num_hidden_layers"],
        hidden=size["hidden_size"],
        heads=size["num_attention_heads"],
        head_dim=size["head_dim"],
        kv_heads=size["num_key_value_heads"],
        mlp=mlp_of(size),
        vocab=size["vocab_size"],
        bytes=figures["bytes"],
        number=number,
        results="\n".join(rows),
        longest=longest,
    )
