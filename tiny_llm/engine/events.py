"""What happened in the engine, one record for each happening: a scheduler's, and of all views.

kind     what it says                                          blocks                    start, tokens
arrival  a request came                                        -                         0, length of the prompt
admit    a sequence runs (note: why its prefix is no longer)   those it shares           0, tokens found in them
share    running, it takes over blocks known by now            those                     tokens before, tokens found
chunk    its part of a step, a decode is a chunk of 1          those newly taken         tokens before, length
copy     copy-on-write                                         source, target            -
step     a step is done                                        -                         0, tokens in it
token    a token was sampled                                   -                         its place, 1
keep     the prefix tree keeps its blocks                      above, kept, in table     tokens before, tokens kept
preempt  it gives up its blocks and waits again                those                     0, tokens lost
evict    the tree gives up blocks                              those                     -
finish   a sequence ends (note: why)                           those                     0, tokens generated
"""

from dataclasses import dataclass

KINDS = tuple("arrival admit share chunk copy step token keep preempt evict finish".split())


@dataclass(frozen=True)
class Event:
    """One happening. `time` in seconds on the scheduler's clock, `step` the number of the step that it belongs to."""

    time: float
    kind: str
    step: int = 0
    request: str = ""
    sequence: int = 0
    start: int = 0
    tokens: int = 0
    blocks: tuple[int, ...] = ()
    note: str = ""
