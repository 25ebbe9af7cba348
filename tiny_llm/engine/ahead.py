"""What a step computes, and a guess at the step after it: made while one runs, it lets the next be prepared."""

from dataclasses import dataclass

from tiny_llm.engine.lifecycle import Entry, Lifecycle, Step


@dataclass(frozen=True)
class Plan:
    """A step, and the blocks that each of its entries may use."""

    step: Step
    tables: list[list[int]]

    @classmethod
    def of(cls, step: Step) -> "Plan":
        return cls(step, [list(entry.sequence.block_table) for entry in step.entries])

    def foretold(self, guess: "Plan") -> bool:
        """Whether the guess was right: the same entries on the same blocks, and nothing done to the pool before."""
        changed = self.step.copies or self.step.admitted
        return not changed and self.step.entries == guess.step.entries and self.tables == guess.tables


def foresee(scheduler: Lifecycle, step: Step) -> Plan | None:
    """The step after `step`, which runs, if all who run sample in it, go on by one token, and nobody comes.

    None where that can't be: a prompt is not through, a search goes on, an answer ends, the free blocks are used up.
    It changes nothing, and holds without knowing one token. A stop token, a newcomer or a cancelled request prove it
    wrong: `Scheduler.schedule` decides, and who has prepared compares.
    """
    ends = {entry.sequence: entry.start + entry.length for entry in step.entries if entry.samples}
    blocks, new = scheduler.blocks, 0
    plan = Plan(Step(step.number + 1), [])
    for sequence in scheduler.running:  # in the order in which they are given blocks
        start, table = ends.get(sequence, -1), sequence.block_table
        length = start + 1  # with the token that is being sampled
        if start < 0 or sequence.followers or length - sequence.num_prompt == sequence.request.params.max_tokens:
            return None
        if length > len(table) * blocks.block_size:
            if new == blocks.num_free:
                return None
            table, new = [*table, blocks.upcoming(new)], new + 1
        plan.step.entries.append(Entry(sequence, start, 1, True))
        plan.tables.append(list(table))
    return plan if plan.step.entries else None
