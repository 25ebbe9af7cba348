"""What few bits cost: size and perplexity of the model inside at each precision, beside mlx-lm's quantization of it.

    python bench/quantize.py [--bits 2 4] [--groups 64] [--tokens 400] [--json]

Each precision is written by both, and each engine measures its own on the same answers, which training never saw.
Mixed: mlx-lm's recipes by rule of thumb, ours by measured damage with as many bits a weight. Sizes and perplexities do
not depend on how busy the machine is.
"""

import argparse
import math
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_llm import load  # before mlx, as a user would  # isort: skip

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
from mlx_lm.utils import load_model

from bench.common import Row, report
from tiny_llm.cache.recompute import RecomputeCache
from tiny_llm.config import QuantizationConfig
from tiny_llm.config.model import GROUP_SIZES, QUANTIZED_BITS
from tiny_llm.engine.llm import POCKET
from tiny_llm.pocket.lessons.conversations import conversations
from tiny_llm.quantize import sensitive
from tiny_llm.quantize.perplexity import Text, perplexity
from tiny_llm.quantize.plan import bits_per_weight, matrices, uniform
from tiny_llm.quantize.write import write_quantized

RECIPES = {"mixed_2_6": (2, 6), "mixed_3_6": (3, 6), "mixed_4_6": (4, 6)}


def texts(split: str, tokens: int) -> list[Text]:
    return [Text(*each) for each in conversations(split, tokens, load().tokenizer.encode)]


def ours(path: Path, held_out: list[Text]) -> float:
    model = load(str(path)).model
    return perplexity(model, held_out, lambda: RecomputeCache(model.config, model.ops))


def peers(path: Path, held_out: list[Text]) -> float:
    """By mlx-lm's model, in float32 like ours."""
    model, _ = load_model(path)
    model.set_dtype(mx.float32)
    losses = []
    for tokens, start in held_out:
        logits = model(mx.array(tokens)[None])[0, start - 1 : -1]
        losses += nn.losses.cross_entropy(logits, mx.array(tokens[start:])).tolist()
    return math.exp(sum(losses) / len(losses))


def convert(path: Path, bits: int, group_size: int, recipe: str | None = None) -> Path:
    with redirect_stdout(sys.stderr):
        mlx_lm.convert(
            str(POCKET), str(path), quantize=True, q_bits=bits, q_group_size=group_size, quant_predicate=recipe
        )
    return path


def size(path: Path) -> float:
    """Megabytes of the weights' files."""
    return sum(file.stat().st_size for file in path.glob("model*.safetensors")) / 1e6


def average_bits(path: Path) -> float:
    """Stored bits for each weight, scales and biases included."""
    packed = [mx.load(str(file)) for file in path.glob("model*.safetensors")]
    tensors = {name: array for part in packed for name, array in part.items()}
    named = [name.removesuffix(".scales") for name in tensors if name.endswith(".scales")]
    stored = sum(tensors[f"{path}.{part}"].nbytes for path in named for part in ("weight", "scales", "biases"))
    return 8 * stored / sum(matrix.size for matrix in matrices(POCKET))


def compare(case: str, mine: Path, theirs: Path, held_out: list[Text]) -> list[Row]:
    figures = [("MB", size(mine), size(theirs)), ("ppl", ours(mine, held_out), peers(theirs, held_out))]
    return [Row(case, unit, a, b, a / b, None) for unit, a, b in figures]


def run(folder: Path, bits: list[int], groups: list[int], tokens: int) -> list[Row]:
    held_out, found, model = texts("test", tokens), matrices(POCKET), load().model
    rows = compare("bfloat16", POCKET, POCKET, held_out)
    for b in bits:
        for group in groups:
            mine, name = folder / f"ours-{b}-{group}", f"{b} bits, groups of {group}"
            write_quantized(POCKET, mine, uniform(found, b, group))
            rows += compare(name, mine, convert(folder / f"theirs-{b}-{group}", b, group), held_out)
    calibration, cache = texts("train", 1024), lambda: RecomputeCache(model.config, model.ops)
    for recipe, (low, high) in RECIPES.items():
        theirs = convert(folder / recipe, low, 64, recipe)
        target = average_bits(theirs)
        plan: QuantizationConfig = sensitive.choose_bits(
            sensitive.measure(model, calibration, cache, low, 64), low, high, 64, target
        )
        write_quantized(POCKET, folder / f"ours-{recipe}", plan)
        name = f"{recipe}, {target:.2f} bits (ours {bits_per_weight(found, plan):.2f})"
        rows += compare(name, folder / f"ours-{recipe}", theirs, held_out)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, nargs="+", choices=QUANTIZED_BITS, default=list(QUANTIZED_BITS))
    parser.add_argument("--groups", type=int, nargs="+", choices=GROUP_SIZES, default=list(GROUP_SIZES))
    parser.add_argument("--tokens", type=int, default=400, help="length of the texts measured on (default: 400)")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = run(Path(folder), given.bits, given.groups, given.tokens)
    report(rows, given.json, tokens=given.tokens)


if __name__ == "__main__":
    main()
