"""`tiny-llm quantize`: store a model's weights in fewer bits, and say what that costs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tiny_llm.cli.errors import usage
from tiny_llm.cli.inputs import check_text
from tiny_llm.cli.options import AsJson, option, with_options
from tiny_llm.cli.terminal import note, print_json, table
from tiny_llm.config import EngineConfig
from tiny_llm.views.units import size

if TYPE_CHECKING:
    from tiny_llm.config import QuantizationConfig
    from tiny_llm.engine.llm import LLM
    from tiny_llm.quantize.plan import Matrix
    from tiny_llm.views.quantized import ModelFigures, QuantizedReport

CALIBRATION = 1024  # tokens


@dataclass(frozen=True)
class Precision:
    """How many bits a weight gets."""

    bits: Annotated[int, typer.Option(help="Bits of a weight: 2, 3, 4, 6 or 8.")] = 4
    group_size: Annotated[int, typer.Option(help="Weights that share a scale: 32, 64 or 128.")] = 64
    predicate: Annotated[
        Literal["all", "body", "sensitive"],
        typer.Option(help="What to quantize: all, all but embedding and head, or all, with more bits where it hurts."),
    ] = "all"
    high_bits: Annotated[int, typer.Option(help="With --predicate sensitive: bits where it hurts.")] = 8
    target_bits: Annotated[
        float | None, option("With --predicate sensitive: bits a weight on average, scales and biases included.")
    ] = None

    def plan(self, found: "Sequence[Matrix]") -> "QuantizationConfig":
        """The plan without what must be measured. Raises ValueError for settings that can't be."""
        from tiny_llm.quantize import plan, sensitive

        if (self.predicate == "sensitive") != (self.target_bits is not None):
            given = "no --target-bits" if self.target_bits is None else "one"
            raise ValueError(f"--predicate {self.predicate}: --target-bits goes with sensitive alone, found {given}")
        if self.target_bits is None:
            return plan.uniform(found, self.bits, self.group_size, "body" if self.predicate == "body" else "all")
        plan.uniform(found, self.high_bits, self.group_size)
        sensitive.choose_bits([], self.bits, self.high_bits, self.group_size, self.target_bits)
        return plan.uniform(found, self.bits, self.group_size)

    def measured(self, llm: "LLM", plan: "QuantizationConfig") -> "QuantizationConfig":
        """The plan of --predicate sensitive, by texts that have nothing in common with those of the report.

        Layers that are dense in `plan` stay so.
        """
        from tiny_llm.cache.recompute import RecomputeCache
        from tiny_llm.quantize import sensitive

        assert self.target_bits is not None
        note("looking for the layers that suffer most …")
        model, calibration = llm.model, texts(llm, "train", CALIBRATION)
        cache = lambda: RecomputeCache(model.config, model.ops)  # noqa: E731
        units = sensitive.measure(model, calibration, cache, self.bits, self.group_size)
        chosen = sensitive.choose_bits(units, self.bits, self.high_bits, self.group_size, self.target_bits)
        return replace(chosen, layers={**plan.layers, **chosen.layers})


@with_options
def quantize(
    model: Annotated[
        str,
        typer.Argument(
            help="A directory, a dense GGUF file, a hub name or an alias, such as pocket for the model inside."
        ),
    ],
    precision: Precision,
    out: Annotated[Path, typer.Option("--out", "-o", help="The directory to make.")],
    tokens: Annotated[
        int, typer.Option(help="Length of the texts to measure on; 0 for none.", min=0, max=1_000_000)
    ] = 2048,
    overwrite: Annotated[bool, option("Replace a quantized model that is there.", "--overwrite")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a quantized copy of a model, in MLX's format, and measure both.

    The perplexity is that of answers in conversations made by tiny-llm, in wordings that the model inside never saw.
    """
    from tiny_llm.engine import llm as engine
    from tiny_llm.model.hub import resolve
    from tiny_llm.quantize import plan as plans
    from tiny_llm.quantize.write import check_place, write_quantized
    from tiny_llm.views.quantized import ModelFigures, QuantizedReport, stored_bytes

    with usage("MODEL"):
        check_text(model, "model")
        source = resolve(model)
    with usage("--out"):
        check_text(str(out), "directory")
        check_place(source, out, overwrite)
    with usage("MODEL"):
        found = plans.matrices(source)
    with usage():
        plan = precision.plan(found)
    perplexity_before = None
    if tokens or precision.target_bits is not None:
        note(f"loading {model} …")
        changeable = EngineConfig(kernels="mlx")  # its matrices can be replaced one by one
        llm = engine.load(str(source), config=None if precision.target_bits is None else changeable)
        perplexity_before = perplexity(llm, tokens)
        plan = plan if precision.target_bits is None else precision.measured(llm, plan)
        del llm
    before = ModelFigures(stored_bytes(source), perplexity_before)
    write_quantized(source, out, plan, overwrite=overwrite)
    after = ModelFigures(stored_bytes(out), perplexity(engine.load(str(out)), tokens) if tokens else None)
    report = QuantizedReport(out, plan, found)
    if as_json:
        print_json(report.as_data(before, after))
    else:
        show(report, before, after)


def texts(llm: "LLM", split: Literal["train", "test"], tokens: int) -> list[Any]:
    from tiny_llm.pocket.lessons.conversations import conversations
    from tiny_llm.quantize.perplexity import Text

    return [Text(*each) for each in conversations(split, tokens, llm.tokenizer.encode)]


def perplexity(llm: "LLM", tokens: int) -> float | None:
    """On held-out conversations of so many tokens; None for 0 of them."""
    from tiny_llm.cache.recompute import RecomputeCache
    from tiny_llm.quantize.perplexity import perplexity

    if not tokens:
        return None
    note("measuring …")
    return perplexity(llm.model, texts(llm, "test", tokens), lambda: RecomputeCache(llm.config, llm.model.ops))


def show(report: "QuantizedReport", before: "ModelFigures", after: "ModelFigures") -> None:
    for line in report.lines():
        print(line)
    rows = [["", "before", "after"], ["weights", size(before.num_bytes), size(after.num_bytes)]]
    if before.perplexity is not None and after.perplexity is not None:
        rows.append(["perplexity", f"{before.perplexity:.4f}", f"{after.perplexity:.4f}"])
    table(rows)
