"""Rotary position embedding: its settings, read from both generations of config.json."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tiny_llm.config.check import check_keys
from tiny_llm.config.fields import JsonFields, as_json, require
from tiny_llm.config.keys import ROPE
from tiny_llm.config.rules import ONE_ROTATION

ROPE_KINDS = ("default", "linear", "yarn", "llama3")
MOST = 1e6  # a factor beyond it is a mistake, and the context would be a number without sense


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding and how it is stretched beyond the training length.

    `kind` "linear" divides positions by `factor`; "yarn" is arXiv:2309.00071; "llama3" is the scheme of Llama 3.1.
    `truncate` rounds the borders of yarn's ramp to whole pairs.
    """

    theta: float = 10000.0
    kind: Literal["default", "linear", "yarn", "llama3"] = "default"
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0
    attention_factor: float | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    truncate: bool = True

    @classmethod
    def from_hf(cls, config: JsonFields, max_position_embeddings: int) -> "RopeConfig":
        """Both generations: `rope_theta` and `rope_scaling` at the top, or all of it under `rope_parameters`."""
        tables = [config.table(name) for name in ("rope_scaling", "rope_parameters")]
        filled = [table for table in tables if table is not None and table.data]
        if not filled:
            return cls(_theta(config, None))
        read = [_read(config, table, max_position_embeddings) for table in filled]
        found = f"{as_json(filled[0].data)} beside {as_json(filled[-1].data)}"
        require(
            read[0] == read[-1],
            f"{config.source}: rope_scaling: expected what rope_parameters says, found {found}; "
            "put rope_theta, rope_type and the rest into one of them and remove the other",
        )
        return read[0]

    def max_context(self, max_position_embeddings: int) -> int:
        """How many tokens a text may have: yarn's `factor` times the original length where that is more.

        The other kinds are trained at the stretched length, which `max_position_embeddings` already is.
        """
        if self.kind != "yarn":
            return max_position_embeddings
        return max(max_position_embeddings, int(self.factor * self.original_max_position_embeddings))


def _read(config: JsonFields, table: JsonFields, length: int) -> RopeConfig:
    """The settings of one table. Raises ValueError for values that the rotation of transformers can't be made of."""
    nested = next((key for key, value in table.data.items() if isinstance(value, Mapping)), None)
    if nested is not None:
        found = as_json(table.data[nested])
        raise ValueError(
            f"{table.source}: {nested:.60}: expected settings for all layers, found {found}; {ONE_ROTATION}"
        )
    check_keys(table, ROPE)
    theta, kind = _theta(config, table), _kind(table)
    if kind == "default":
        factor = table.data.get("factor")
        require(
            factor in (None, 1),
            f"{table.source}: factor: expected no factor with rope_type default, found {as_json(factor)}; "
            "set rope_type to linear, yarn or llama3, or remove it",
        )
        return RopeConfig(theta)
    if kind == "linear":
        return RopeConfig(theta, "linear", _factor(table))
    original = _original(config, table, length)
    if kind == "llama3":
        return _llama3(table, theta, original)
    return _yarn(table, theta, original, length)


def _yarn(table: JsonFields, theta: float, original: int, length: int) -> RopeConfig:
    fast, slow = table.number("beta_fast", 32.0), table.number("beta_slow", 1.0)
    require(fast >= slow, f"{table.source}: beta_fast: expected at least beta_slow ({slow:g}), found {fast:g}")
    unset = "factor" in table.data and table.data["factor"] is None
    factor = length / original if unset else _factor(table)
    if factor * original < length:
        warnings.warn(
            f"{table.source}: factor: {factor:g} times the original {original} positions are fewer than "
            f"max_position_embeddings ({length}): texts beyond {factor * original:g} tokens are not stretched enough",
            stacklevel=2,
        )
    optional: dict[str, Any] = {}
    if table.data.get("attention_factor") is not None:
        optional["attention_factor"] = table.number("attention_factor")
    scales = [table.number(name, 0.0, inclusive=True) for name in ("mscale", "mscale_all_dim")]
    if all(scales):  # transformers takes no notice of one without the other
        optional |= {"mscale": scales[0], "mscale_all_dim": scales[1]}
    return RopeConfig(
        theta,
        "yarn",
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=fast,
        beta_slow=slow,
        truncate=table.choice("truncate", (True, False), True),
        **optional,
    )


def _llama3(table: JsonFields, theta: float, original: int) -> RopeConfig:
    low, high = table.number("low_freq_factor"), table.number("high_freq_factor")
    require(
        high > low,
        f"{table.source}: high_freq_factor: expected a number above low_freq_factor ({low:g}), found {high:g}",
    )
    return RopeConfig(
        theta,
        "llama3",
        factor=_factor(table),
        original_max_position_embeddings=original,
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _kind(table: JsonFields) -> Any:
    """The value of `rope_type`, which older files call `type`."""
    named = [name for name in ("rope_type", "type") if table.data.get(name) is not None]
    if not named:
        return "default"
    kinds = [table.choice(name, ROPE_KINDS) for name in named]
    require(
        kinds[0] == kinds[-1],
        f"{table.source}: rope_type: expected what type says ({kinds[-1]!r}), found {kinds[0]!r}; remove the wrong one",
    )
    return kinds[0]


def _theta(config: JsonFields, table: JsonFields | None) -> float:
    """`rope_theta`, from the table or from beside it."""
    places = [place for place in (table, config) if place is not None and place.data.get("rope_theta") is not None]
    values = [place.number("rope_theta", low=1.0) for place in places]
    require(
        len(set(values)) < 2,
        f"{config.source}: rope_theta: expected one value, found {' beside '.join(f'{value:g}' for value in values)} "
        "in the table of the rotation and at the top; remove the wrong one",
    )
    return values[0] if values else 10000.0


def _factor(table: JsonFields) -> float:
    factor = table.number("factor")
    require(
        1 <= factor <= MOST,
        f"{table.source}: factor: expected a number from 1 to {MOST:g}, found {factor:g}; positions are only stretched",
    )
    return factor


def _original(config: JsonFields, table: JsonFields, length: int) -> int:
    """The context before stretching, from the table or from beside it; `length` where neither says."""
    name = "original_max_position_embeddings"
    places = [place for place in (table, config) if place.data.get(name) is not None]
    values = [place.integer(name) for place in places]
    require(
        len(set(values)) < 2,
        f"{config.source}: {name}: expected one value, found {' beside '.join(map(str, values))} in the table of the "
        "rotation and at the top; remove the wrong one",
    )
    original = values[0] if values else length
    require(
        original <= length,
        f"{(places or [table])[0].source}: {name}: expected at most max_position_embeddings ({length}), "
        f"found {original}; correct the wrong one",
    )
    return original
