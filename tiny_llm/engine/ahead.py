"""Predict the next step while this one runs, so that its graph can be built early."""

from tiny_llm.cache.view import View
from tiny_llm.engine.request import Sequence
from tiny_llm.engine.scheduler import Scheduler
from tiny_llm.engine.step import UNKNOWN, Share, Step


def foresee(scheduler: Scheduler, step: Step) -> Step | None:
    """The next step, assuming every running sequence samples one token, none ends and none arrives; None if that cannot
    hold: a prompt is not computed yet, a search goes on, an answer reaches its last token, no block is free.

    Changes nothing. A stop token, an admission or a cancelled request prove it wrong: `Scheduler.schedule` decides, and
    the runner discards a wrong prediction.
    """
    ends = {share.sequence: share.end for share in step.shares if share.wanted}
    blocks, new = scheduler.blocks, 0
    shares: list[Share] = []
    for sequence in scheduler.running:  # in the order in which they are given blocks
        start = ends.get(sequence.id, -1)
        if start < 0 or not _goes_on(sequence, start):
            return None
        table = tuple(sequence.block_table)
        if start + 1 > len(table) * blocks.block_size:
            if new == blocks.num_free:
                return None
            table, new = (*table, blocks.upcoming(new)), new + 1
        shares.append(Share(sequence.id, start, (UNKNOWN,), 1, View(table, start)))
    return Step(step.number + 1, tuple(shares)) if shares else None


def _goes_on(sequence: Sequence, end: int) -> bool:
    """Whether one more token leaves a sequence running, alone, and by sampling."""
    request = sequence.request
    last = end + 1 - sequence.num_prompt == request.params.max_tokens
    return not (last or sequence.followers or request.searches)
