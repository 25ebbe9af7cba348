"""Structured output: a grammar (llguidance) says which tokens may come next; all others get minus infinity."""

import json
import math
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
KEPT = 64  # compiled grammars, the most recently used
# Between the parts of a JSON text: a line break with its indentation, or a few spaces. A model that likes line breaks
# could otherwise fill its whole answer with them.
WHITE_SPACE = r"(\r?\n[ \t]{0,12}|[ ]{1,4})"


class Grammars:
    """Make matchers, each of which follows one answer. Raises ValueError where llguidance is not installed.

    Any thread may call `matcher`; a matcher itself belongs to one thread at a time.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self._compiled: OrderedDict[Structured, Any] = OrderedDict()  # by last use
        self._lock = Lock()

    @cached_property
    def _known(self) -> Any:
        """The vocabulary in llguidance's form. A large one takes seconds, so it is made once, at the first use."""
        library = _library()
        return library.LLTokenizer(
            self.tokenizer.backend.to_str(),
            n_vocab=self.vocab_size,
            eos_token=sorted(self.tokenizer.eos_token_ids),
        )

    def matcher(self, wanted: Structured) -> Any:
        """Make a matcher. Raises ValueError, with llguidance's reason, for a faulty schema, expression or grammar."""
        with self._lock:
            if wanted not in self._compiled:
                self._compiled[wanted] = self._compile(wanted)
                while len(self._compiled) > KEPT:
                    self._compiled.popitem(last=False)
            self._compiled.move_to_end(wanted)
            return self._compiled[wanted].deep_copy()

    def _compile(self, wanted: Structured) -> Any:
        """Compile a grammar. Raises ValueError for a faulty one, and for one that no text can begin."""
        library = _library()
        try:
            matcher = self._matcher(library.LLMatcher, wanted)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"structured: expected a {wanted.kind}, found a faulty one: {error}") from error
        begins = self.bits([matcher])[0] & self.anything_but_an_end
        may_be_empty = matcher.is_accepting() and wanted.kind != "json_schema"
        if not begins.any() and not may_be_empty:
            raise ValueError(
                f"structured: expected a {wanted.kind} that some text fits, found one that no text can begin"
            )
        return matcher

    def _matcher(self, matcher: Any, wanted: Structured) -> Any:
        """Make a `matcher`, llguidance's class. Raises ValueError with llguidance's reason for a faulty grammar."""
        if wanted.kind == "json_schema":
            schema = "{}" if wanted.text.strip() == "true" else wanted.text
            grammar = matcher.grammar_from_json_schema(schema, defaults=_white_space(schema))
        elif wanted.kind == "regex":
            grammar = matcher.grammar_from_regex(wanted.text)
        else:
            grammar = matcher.grammar_from_lark(wanted.text)
        reason = matcher.validate_grammar(grammar, self._known)
        if reason:
            raise ValueError(reason)
        return matcher(self._known, grammar, log_level=0)

    @cached_property
    def anything_but_an_end(self) -> Bits:
        """The bits of a row in which every token may come except those that end a text, (ceil(V / 32),)."""
        words = math.ceil(self.vocab_size / 32)
        allowed = np.ones(words * 32, np.bool_)
        for token in self.tokenizer.eos_token_ids:
            if token < self.vocab_size:
                allowed[token] = False
        packed = np.packbits(allowed, bitorder="little")
        bits: Bits = packed.view(np.int32)
        return bits

    def only(self, token: int) -> Bits:
        """Set the bit of one token, (ceil(V / 32),)."""
        bits = np.zeros_like(self.anything_but_an_end)
        bits[token // 32] = np.uint32(1 << token % 32).astype(np.int32)
        return bits

    # ANCHOR: bits
    def bits(self, matchers: Sequence[Any]) -> Bits:
        """Set a bit for each token that may come next, the lowest first. → (matchers, ceil(V / 32))."""
        masks = _library("llguidance.numpy")
        bits: Bits = masks.allocate_token_bitmask(len(matchers), self.vocab_size)
        for row, matcher in enumerate(matchers):
            masks.fill_next_token_bitmask(matcher, bits, row)
        return bits

    # ANCHOR_END: bits


def _white_space(schema: str) -> dict[str, str]:
    """Return WHITE_SPACE as an option, unless the schema's own `x-guidance` says which white space it wants."""
    found = json.loads(schema)
    own = found.get("x-guidance") if isinstance(found, dict) else None
    if isinstance(own, dict):
        for name in own:
            if name.startswith("whitespace"):
                return {}
    return {"whitespace_pattern": WHITE_SPACE}


def _library(name: str = "llguidance") -> Any:
    """Import llguidance or a module of it: it is an optional dependency."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError('structured: needs llguidance; install it with pip install "tiny-llm[structured]"') from error


def mask_logits(logits: mx.array, bits: mx.array) -> mx.array:
    """Set logits to minus infinity for every token whose bit is 0. logits (R, V), bits (R, ceil(V / 32)) int32.

    Bit 0 of a row's first number stands for token 0, and bit 31, which makes the number negative, for token 31.
    """
    # TASK w4.2.1: forbid the tokens whose bit is 0
    rows, vocab = logits.shape
    shifted = bits[:, :, None] >> mx.arange(32)  # (R, ceil(V / 32), 32)
    lowest = (shifted & 1).astype(mx.bool_)
    allowed = lowest.reshape(rows, -1)
    return mx.where(allowed[:, :vocab], logits, -mx.inf)
    # END TASK
