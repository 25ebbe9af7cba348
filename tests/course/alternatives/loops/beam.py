"""Continuations by taking the maximum again and again."""

import numpy as np

from tiny_llm.decode.beam import Beam


def extend(beam, logprobs, count, stops):
    left, longer = logprobs.copy(), []
    for _ in range(count):
        token = int(left.argmax())
        longer.append(Beam((*beam.tokens, token), beam.logprob + float(left[token]), token in stops))
        left[token] = -np.inf
    return longer
