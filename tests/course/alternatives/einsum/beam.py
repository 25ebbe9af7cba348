"""Continuations from a full sort."""

import numpy as np

from tiny_llm.decode.beam import Beam


def extend(beam, logprobs, count, stops):
    order = np.argsort(logprobs)[::-1][:count]
    return [Beam((*beam.tokens, int(t)), beam.logprob + logprobs[t], int(t) in stops) for t in order]
