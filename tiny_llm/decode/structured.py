"""Structured output: a grammar says which tokens may come next, all others get minus infinity. (llguidance)"""

import json
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from threading import Lock
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from tiny_llm.config.structured import Structured
from tiny_llm.model.tokenizer import Tokenizer

Bits = npt.NDArray[np.int32]
KEPT = 64  # compiled grammars
# Between the parts of a JSON text: a line break with its indentation, or a few spaces. A model that likes line breaks
# could otherwise fill its whole answer with them.
WHITE_SPACE = r"(\r?\n[ \t]{0,12}|[ ]{1,4})"


class Grammars:
    """Makes matchers, each of which follows one answer. Raises ValueError where llguidance is not installed.

    Any thread may call `matcher`; a matcher itself belongs to one thread at a time.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self._compiled: OrderedDict[Structured, Any] = OrderedDict()  # by last use
        self._lock = Lock()

    @cached_property
    def _known(self) -> Any:
        """The vocabulary in llguidance's form: seconds for a large one, so once and only where it is asked for."""
        return _library().LLTokenizer(
            self.tokenizer.backend.to_str(), n_vocab=self.vocab_size, eos_token=sorted(self.tokenizer.eos_token_ids)
        )

    def matcher(self, wanted: Structured) -> Any:
        """A new matcher. Raises ValueError, with llguidance's reason, for what is no schema, expression or grammar."""
        with self._lock:
            if wanted not in self._compiled:
                self._compiled[wanted] = self._compile(wanted)
                while len(self._compiled) > KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(wanted)
            return self._compiled[wanted].deep_copy()

    def _compile(self, wanted: Structured) -> Any:
        library = _library()
        try:
            matcher = self._matcher(library.LLMatcher, wanted)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"structured: expected a {wanted.kind}, found a faulty one: {error}") from error
        begins = self.bits([matcher])[0] & self.anything_but_an_end
        if not begins.any() and (not matcher.is_accepting() or wanted.kind == "json_schema"):
            raise ValueError(
                f"structured: expected a {wanted.kind} that some text fits, found one that no text can begin"
            )
        return matcher

    def _matcher(self, matcher: Any, wanted: Structured) -> Any:
        if wanted.kind == "json_schema":
            schema = "{}" if wanted.text.strip() == "true" else wanted.text
            grammar = matcher.grammar_from_json_schema(schema, defaults=_white_space(schema))
        elif wanted.kind == "regex":
            grammar = matcher.grammar_from_regex(wanted.text)
        else:
            grammar = matcher.grammar_from_lark(wanted.text)
        if reason := matcher.validate_grammar(grammar, self._known):
            raise ValueError(reason)
        return matcher(self._known, grammar, log_level=0)

    @cached_property
    def anything_but_an_end(self) -> Bits:
        """The bits of a row in which every token may come but those that end a text, (ceil(V / 32),)."""
        allowed = np.ones(-(-self.vocab_size // 32) * 32, np.bool_)
        allowed[[token for token in self.tokenizer.eos_token_ids if token < self.vocab_size]] = False
        bits: Bits = np.packbits(allowed, bitorder="little").view(np.int32)
        return bits

    def bits(self, matchers: Sequence[Any]) -> Bits:
        """A bit for each token that may come next, (matchers, ceil(V / 32)), the lowest first."""
        masks = _library("llguidance.numpy")
        bits: Bits = masks.allocate_token_bitmask(len(matchers), self.vocab_size)
        for row, matcher in enumerate(matchers):
            masks.fill_next_token_bitmask(matcher, bits, row)
        return bits


def _white_space(schema: str) -> dict[str, str]:
    """WHITE_SPACE, unless the schema's own `x-guidance` says which white space it wants."""
    found = json.loads(schema)
    own = found.get("x-guidance") if isinstance(found, dict) else None
    said = isinstance(own, dict) and any(name.startswith("whitespace") for name in own)
    return {} if said else {"whitespace_pattern": WHITE_SPACE}


def _library(name: str = "llguidance") -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError('structured: needs llguidance; install it with pip install "tiny-llm[structured]"') from error


def mask_logits(logits: mx.array, bits: mx.array) -> mx.array:
    """Minus infinity for every token whose bit is 0. logits (R, V), bits (R, ceil(V / 32)) int32."""
    allowed = (bits[:, :, None] >> mx.arange(32)) & 1  # (R, ceil(V / 32), 32)
    return mx.where(allowed.reshape(len(bits), -1)[:, : logits.shape[1]].astype(mx.bool_), logits, -mx.inf)
