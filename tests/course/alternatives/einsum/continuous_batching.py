"""The scheduler with comprehensions and early returns."""

from tiny_llm.engine.lifecycle import Step
from tiny_llm.engine.request import State


def due_time(request, config):
    deadline = float("inf") if request.deadline is None else max(request.arrival, request.deadline)
    return min(deadline, config.patience + request.arrival) - config.priority_seconds * request.priority


class Scheduler:
    def schedule(self, now):
        self.steps += 1
        step = Step(number=self.steps)
        for part in (self._decode, self._admit, self._prefill):
            part(step, now)
        while not step.entries:
            if not self.running:
                break
            self._preempt(self.running[-1], step, now)
            self._prefill(step, now)
        return step

    def finish(self, step, sampled, now):
        self._tell(now, "step", tokens=step.num_tokens)
        alive = [(e, t) for e, t in zip(step.entries, sampled, strict=True) if e.sequence.state is State.RUNNING]
        for (sequence, start, length, samples), token in alive:
            sequence.computed = start + length
            if length > 1:
                self._keep(sequence, now)
            if samples:
                self._fork(sequence, now)
                self._append(sequence, token, now)
        return [e.sequence for e in step.entries if e.sequence.finish_reason is not None]

    def _decode(self, step, now):
        for sequence in [s for s in self.running if s.remaining == 1]:
            while sequence in self.running and self._enter(sequence, 1, step, now) == 0:
                self._preempt(self.running[-1], step, now)

    def _admit(self, step, now):
        if self.running and step.preempted:
            return
        while (sequence := self.waiting.peek()) is not None:
            promised = [self.blocks.blocks_for(len(s.tokens)) - len(s.block_table) for s in self.running]
            slots = sum(1 + len(s.followers) for s in [*self.running, sequence])
            found = self._find(sequence)
            new = self.blocks.blocks_for(len(sequence.tokens)) - len(found.blocks)
            unread = [block for block in found.blocks if self.blocks.ref_count(block) == 1]
            grow = slots if len(self.running) > len(step.admitted) or step.admitted else 0
            fits = self.blocks.num_available >= new + len(unread) + sum(promised) + grow
            if slots > self.config.max_sequences or not fits:
                return
            self._start(self.waiting.pop(), found, step, now)

    def _prefill(self, step, now):
        there = [entry.sequence for entry in step.entries]
        prompts = self._distinct([s for s in self.running if s not in there], now)
        if prompts:
            eldest, *others = prompts
            left = self.config.token_budget - sum(e.length for e in step.entries)
            free = left - min(eldest.remaining, left - left // 2)
            taken = 0
            for sequence in sorted(others, key=lambda s: s.remaining):
                taken += self._enter(sequence, free - taken, step, now)
            self._enter(eldest, left - taken, step, now)
