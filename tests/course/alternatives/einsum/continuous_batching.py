"""The scheduler with comprehensions and early returns."""

from tiny_llm.engine.request import computed_after


def due_time(request, config):
    deadline = float("inf") if request.deadline is None else max(request.arrival, request.deadline)
    return min(deadline, config.patience + request.arrival) - config.priority_seconds * request.priority


class Scheduler:
    def schedule(self, now):
        plan = self._new_plan(now)
        for part in (self._decode, self._admit, self._prefill):
            part(plan)
        while not plan.entries:
            if not self.running:
                break
            self._preempt(self.running[-1], plan)
            self._prefill(plan)
        return self._step(plan)

    def finish(self, step, results, now):
        self.log.now = now
        self.log.tell("step", tokens=step.num_tokens)
        found = [self.sequences.find(share.sequence) for share in step.shares]
        alive = [row for row in zip(found, step.shares, results, strict=True) if row[0] is not None]
        for sequence, share, result in alive:
            sequence.computed = computed_after(share, result)
            if share.length - share.wanted:
                self.ledger.keep(sequence)
            if len(result.tokens):
                self.sequences.fork(sequence)
                self._append(sequence, result.tokens)
        return [sequence for sequence, _, _ in alive if sequence.finish_reason is not None]

    def _decode(self, plan):
        for sequence in [s for s in self.running if s.remaining == 1]:
            while sequence in self.running and self._enter(sequence, 1, plan) == 0:
                self._preempt(self.running[-1], plan)

    def _admit(self, plan):
        if self.running and plan.preempted:
            return
        while (sequence := self.waiting.peek()) is not None:
            promised = [self.blocks.blocks_for(len(s.tokens)) - len(s.block_table) for s in self.running]
            slots = sum(1 + len(s.followers) for s in [*self.running, sequence])
            found = self.ledger.match(sequence)
            new = self.blocks.blocks_for(len(sequence.tokens)) - len(found.blocks)
            unread = [block for block in found.blocks if self.blocks.ref_count(block) == 1]
            grow = slots if len(self.running) > len(plan.admitted) or plan.admitted else 0
            fits = self.blocks.num_available >= new + len(unread) + sum(promised) + grow
            if slots > self.config.max_sequences or not fits:
                return
            self._start(found, plan)

    def _prefill(self, plan):
        there = list(plan.entries)
        prompts = self._distinct([s for s in self.running if s not in there])
        if prompts:
            eldest, *others = prompts
            left = self.config.token_budget - sum(e.length for e in plan.entries.values())
            free = left - min(eldest.remaining, left - left // 2)
            taken = 0
            for sequence in sorted(others, key=lambda s: s.remaining):
                taken += self._enter(sequence, free - taken, plan)
            self._enter(eldest, left - taken, plan)
