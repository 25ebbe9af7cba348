"""What each ingredient of the pocket model's recipe buys: small models trained without it, on repeated random tokens.

    python bench/pocket_ablation.py [--variant NAME …] [--seed 1 …] [--tokens 1250000] [--table]

Trains the recipe's first stage on a model of two layers of 128, whole and with one thing changed, and examines it as it
goes: in fresh rows of distinct random tokens that come twice, the share of the second round that it gets right. The
log of each run goes into book/figures/data/pocket_ablation.json as soon as it is done; a run that is there already, as
long or longer, is not made again. The first run of the whole recipe also leaves what its heads look at. --table trains
nothing and prints what the data say. A run of this length takes about three minutes of an idle core.
"""

import argparse
import importlib
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import tiny_llm  # noqa: E402, F401  activates the BLAS  # isort: skip

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from tiny_llm.model.qwen3 import Qwen3  # noqa: E402
from tiny_llm.pocket.recipe import Recipe, Repeats, Size  # noqa: E402
from tiny_llm.pocket.tokenizer import VOCAB_SIZE  # noqa: E402
from tiny_llm.pocket.trainer import PocketTrainer  # noqa: E402
from tiny_llm.train.differentiable import TRAINING, TreeAttention, cross_entropy, softmax  # noqa: E402
from tiny_llm.train.memory import keep_memory  # noqa: E402
from tiny_llm.train.optimizer import Arrays, Optimizer  # noqa: E402

Integers = NDArray[np.int32]
DATA = ROOT / "book" / "figures" / "data"
RUNS, HEADS = DATA / "pocket_ablation.json", DATA / "pocket_heads.json"
BASE = Recipe(Size(hidden=128, layers=2, mlp=256), step_tokens=1024, repeats=Repeats(done=0.0, max_tokens=10**9))
LOG_EVERY = 20  # steps
PERIOD, LONG_PERIOD, ROWS = 16, 64, 32  # of the exam; training rows have at most 96 tokens
SHOWN = 8  # period of the row in the picture of the heads


class AdamOnly(Optimizer):
    """AdamW for the matrices, too."""

    def _muon(self, gradients: Arrays) -> Arrays:
        return {}


@dataclass(frozen=True)
class Variant:
    """One change: of the recipe, or of the trainer before its first step."""

    label: str
    recipe: Callable[[Recipe], Recipe] = lambda recipe: recipe
    prepare: Callable[[PocketTrainer], None] = lambda trainer: None


def adam_only(rate: float) -> Callable[[PocketTrainer], None]:
    def prepare(trainer: PocketTrainer) -> None:
        trainer.optimizer = AdamOnly(trainer.config, 0.0, rate, trainer.recipe.clip)

    return prepare


def random_projections(trainer: PocketTrainer) -> None:
    """`o_proj` and `down_proj` drawn like the other matrices instead of zero."""
    layers = trainer.weights["layers"]
    keys = iter(mx.random.split(mx.random.key(1000 + trainer.recipe.seed), 2 * len(layers)))
    for layer in layers:
        for name in ("o_proj", "down_proj"):
            shape = layer[name]["weight"].shape
            layer[name] = {"weight": mx.random.normal(shape, key=next(keys)) * 0.8 * shape[1] ** -0.5}


def limits(**values: float) -> Callable[[Recipe], Recipe]:
    return lambda recipe: replace(recipe, repeats=replace(recipe.repeats, **values))


# ANCHOR: variants
VARIANTS = {
    "recipe": Variant("the whole recipe"),
    "no-curriculum": Variant("no curriculum: long periods, all tokens at once", limits(period=44, alphabet=VOCAB_SIZE)),
    "adamw": Variant("AdamW 3e-3 for all weights, no Muon", prepare=adam_only(3e-3)),
    "adamw-slow": Variant("AdamW 1e-3 for all weights, no Muon", prepare=adam_only(1e-3)),
    "gain-1": Variant("q/k-norm gain 1 instead of 1.7", lambda recipe: replace(recipe, qk_gain=1.0)),
    "random-projections": Variant("output projections random instead of zero", prepare=random_projections),
    "one-layer": Variant("one layer", lambda recipe: replace(recipe, size=replace(recipe.size, layers=1))),
}
# ANCHOR_END: variants


def rounds(period: int, rows: int = ROWS) -> Integers:
    """Rows of `period` distinct random tokens, twice; drawn apart from the lessons. (rows, 2 · period)"""
    rng = np.random.default_rng([2026, period])
    return np.stack([np.tile(rng.permutation(VOCAB_SIZE)[:period], 2) for _ in range(rows)]).astype(np.int32)


def hidden_states(trainer: PocketTrainer, tokens: Integers, watch: list[mx.array] | None = None) -> mx.array:
    """(B · T, hidden) of rows (B, T). `watch` gets each layer's attention weights, (B, Hq, T, T)."""
    rows, length = tokens.shape
    positions = mx.broadcast_to(mx.arange(length), (rows, length))
    visible = mx.broadcast_to(mx.tri(length).astype(mx.bool_), (rows, length, length))
    cache = TreeAttention(positions, visible) if watch is None else Watching(positions, visible, watch)
    return Qwen3(trainer.config, trainer.weights, TRAINING).hidden_states(mx.array(tokens.reshape(-1)), cache)


class Watching(TreeAttention):
    """Keeps the weights of attention."""

    def __init__(self, positions: mx.array, visible: mx.array, weights: list[mx.array]):
        super().__init__(positions, visible)
        self.weights = weights

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        queries, keys = (x.reshape(self.rows, -1, *x.shape[1:]).swapaxes(1, 2) for x in (q, k))  # (B, H, T, D)
        keys = mx.repeat(keys, queries.shape[1] // keys.shape[1], axis=1)
        scores = queries @ keys.swapaxes(2, 3) * q.shape[-1] ** -0.5
        self.weights.append(softmax(scores + self.hidden[:, None]))
        return super().attend(layer, q, k, v)


# ANCHOR: exam
def exam(trainer: PocketTrainer, period: int) -> tuple[float, float]:
    """(share right, mean loss) of the tokens of the second round but its first, which nothing foretells."""
    tokens = rounds(period)
    at = np.arange(len(tokens))[:, None] * 2 * period + np.arange(period, 2 * period - 1)
    model = Qwen3(trainer.config, trainer.weights, TRAINING)
    logits = model.logits(hidden_states(trainer, tokens)[mx.array(at.reshape(-1))])
    targets = mx.array(tokens.reshape(-1)[at.reshape(-1) + 1])
    right = (mx.argmax(logits, axis=-1) == targets).astype(mx.float32).mean()
    return round(right.item(), 4), round(cross_entropy(logits, targets).mean().item(), 3)


# ANCHOR_END: exam


def train(name: str, seed: int, tokens: int) -> tuple[dict[str, Any], PocketTrainer]:
    """The log and the trainer of one run, until so many tokens are spent."""
    variant = VARIANTS[name]
    trainer = PocketTrainer(variant.recipe(replace(BASE, seed=seed)), Path(), lambda text: [], name)
    variant.prepare(trainer)
    points, recent, begun = [], [], time.monotonic()
    while trainer.progress.tokens < tokens:
        recent.append(trainer.step()["answers"])
        if trainer.progress.step % LOG_EVERY == 0:
            p, (right, loss) = trainer.progress, exam(trainer, PERIOD)
            points.append([p.tokens, round(statistics.mean(recent), 3), loss, right, round(p.period, 1)])
            recent = []
            print(name, seed, *points[-1], f"{p.tokens / (time.monotonic() - begun):.0f} tok/s", flush=True)
    ends = {"right": exam(trainer, PERIOD)[0], "right_long": exam(trainer, LONG_PERIOD)[0]}
    return {"variant": name, "seed": seed, "tokens": trainer.progress.tokens, **ends, "log": points}, trainer


def heads(trainer: PocketTrainer) -> dict[str, Any]:
    """What each head looks at in one row, and how much of the exam is right without it."""
    row, watched, found = rounds(SHOWN, 1), [], []
    hidden_states(trainer, row, watched)
    for layer, weights in enumerate(watched):
        for head, seen in enumerate(weights[0].tolist()):
            right = without(trainer, layer, head)
            rounded = [[round(value, 2) for value in line] for line in seen]
            found.append({"layer": layer, "head": head, "right_without": right, "weights": rounded})
    return {"tokens": row[0].tolist(), "right": exam(trainer, PERIOD)[0], "heads": found}


def without(trainer: PocketTrainer, layer: int, head: int) -> float:
    """The exam with what one head says taken away."""
    weight, dim = trainer.weights["layers"][layer]["o_proj"], trainer.config.head_dim
    kept = mx.arange(weight["weight"].shape[1]) // dim != head
    trainer.weights["layers"][layer]["o_proj"] = {"weight": weight["weight"] * kept}
    right, _ = exam(trainer, PERIOD)
    trainer.weights["layers"][layer]["o_proj"] = weight
    return right


def load() -> list[dict[str, Any]]:
    """The runs so far."""
    return json.loads(RUNS.read_text(encoding="utf-8"))["runs"] if RUNS.exists() else []


def write(path: Path, data: Any) -> None:
    """JSON with one run, head or point of a log per line; the file is whole at any time."""
    text = json.dumps(data, indent=1)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda match: "[" + " ".join(match[0][1:-1].split()) + "]", text)
    path.parent.mkdir(exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(text + "\n", encoding="utf-8")
    new.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--seed", nargs="+", type=int, default=[1])
    parser.add_argument("--tokens", type=int, default=1_250_000, help="of each run (default: %(default)s)")
    parser.add_argument("--table", action="store_true", help="train nothing, print what the data say")
    options = parser.parse_args()
    if not options.table:
        keep_memory()
        for seed, name in product(options.seed, options.variant):
            make(name, seed, options.tokens)
    sys.path.append(str(ROOT / "book" / "figures"))
    print(importlib.import_module("copying").table())


def make(name: str, seed: int, tokens: int) -> None:
    """One run, unless one as long is there; a shorter one gives way."""
    this = {"variant": name, "seed": seed}
    if any(this.items() <= run.items() and run["tokens"] >= tokens for run in load()):
        return
    run, trainer = train(name, seed, tokens)
    others = [other for other in load() if not this.items() <= other.items()]
    labels = {name: variant.label for name, variant in VARIANTS.items()}
    write(RUNS, {"labels": labels, "runs": [*others, run]})
    if (name, seed) == ("recipe", 1):
        write(HEADS, heads(trainer))


if __name__ == "__main__":
    main()
