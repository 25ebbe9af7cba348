"""Load the weights that a drafter needs beside the model: a draft model, Medusa heads or an EAGLE head."""

import warnings
from pathlib import Path

from tiny_llm.cache.memory import bytes_per_slot
from tiny_llm.config import EngineConfig
from tiny_llm.config.fields import require
from tiny_llm.engine.loading import choose_operations, dtype_of, load_model, load_tokenizer
from tiny_llm.kernels.roofline import matrix_weights
from tiny_llm.model import hub, loader
from tiny_llm.model.eagle import EagleHead
from tiny_llm.model.medusa import MedusaHeads
from tiny_llm.model.qwen3 import Qwen3
from tiny_llm.model.source import open_source
from tiny_llm.model.tokenizer import Tokenizer

Helper = Qwen3 | MedusaHeads | EagleHead
NEEDED = {"draft": "a smaller model with the same tokenizer", "medusa": "Medusa heads", "eagle": "an EAGLE head"}
INSIDE = {  # for the model inside
    "draft": hub.SHIPPED["pocket-draft"],
    "medusa": hub.WEIGHTS / "medusa",
    "eagle": hub.WEIGHTS / "eagle",
}


def bytes_beside(helper: Helper | None, width: int) -> int:
    """Return the bytes that a drafter keeps beside each slot of the model, with activations `width` bytes wide."""
    if isinstance(helper, Qwen3 | EagleHead):
        return bytes_per_slot(helper.config, width)
    return 0


def load_helper(engine: EngineConfig, target: Qwen3, tokenizer: Tokenizer, path: Path) -> Helper | None:
    """Load the weights that the drafter needs beside the model at `path`; None where it needs none.

    Raises ValueError where none are named and none ship with the model, and where they belong to another model.
    """
    drafter = engine.speculation.drafter
    if drafter not in NEEDED:
        return None
    name = engine.speculation.model
    inside = INSIDE[drafter]
    missing = path != hub.SHIPPED["pocket"] or not inside.exists()
    require(
        name is not None or not missing,
        f"draft_model: the drafter {drafter} needs {NEEDED[drafter]}, found none named; --draft-model names it",
    )
    place = inside if name is None else hub.resolve(name)
    if drafter == "medusa":
        return MedusaHeads.from_dir(place, target)
    if drafter == "eagle":
        return EagleHead.from_dir(place, target)
    return _load_draft_model(engine, target, tokenizer, place)


def _load_draft_model(engine: EngineConfig, target: Qwen3, tokenizer: Tokenizer, place: Path) -> Qwen3:
    """Load a draft model. Raises ValueError for another tokenizer, and warns of a model that is not cheaper."""
    source = open_source(place)
    shape = loader.load_config(source)
    dtype = dtype_of(engine)
    model = load_model(source, shape, choose_operations(engine, dtype), dtype)
    difference = tokenizer.difference(load_tokenizer(source, shape))
    require(difference is None, f"draft_model: {place}: expected the model's tokenizer, found another: {difference}")
    mine, its = matrix_weights(shape), matrix_weights(target.config)
    if mine >= its:
        warnings.warn(
            f"draft_model: {place} multiplies each token with {mine:,} weights, the model with {its:,}: drafts will "
            "cost more than they save; name a smaller model",
            RuntimeWarning,
            stacklevel=4,
        )
    return model
