"""The scheduler with plain loops and counters."""

from tiny_llm.engine.lifecycle import Step
from tiny_llm.engine.request import State


def due_time(request, config):
    due = request.arrival + config.patience
    if request.deadline is not None and request.deadline < due:
        due = request.deadline
        if due < request.arrival:
            due = request.arrival
    for _ in range(abs(request.priority)):
        due += config.priority_seconds if request.priority < 0 else -config.priority_seconds
    return due


class Scheduler:
    def schedule(self, now):
        self.steps = self.steps + 1
        step = Step(self.steps)
        self._decode(step, now)
        self._admit(step, now)
        while True:
            self._prefill(step, now)
            if step.entries or not self.running:
                return step
            self._preempt(self.running[-1], step, now)

    def finish(self, step, sampled, now):
        self._tell(now, "step", tokens=step.num_tokens)
        ended = []
        for i in range(len(step.entries)):
            entry = step.entries[i]
            sequence = entry.sequence
            if sequence.state is State.RUNNING:
                sequence.computed += entry.length
                if entry.length > 1:
                    self._keep(sequence, now)
                if entry.samples:
                    self._fork(sequence, now)
                    self._append(sequence, sampled[i], now)
            if sequence.state is State.FINISHED:
                ended.append(sequence)
        return ended

    def _decode(self, step, now):
        done = 0
        while done < len(self.running):
            sequence = self.running[done]
            if sequence.remaining == 1 and not self._enter(sequence, 1, step, now):
                self._preempt(self.running[-1], step, now)
            else:
                done += 1

    def _admit(self, step, now):
        owed = slots = 0
        for s in self.running:
            owed += self.blocks.blocks_for(len(s.tokens)) - len(s.block_table)
            slots += 1 + len(s.followers)
        while len(self.waiting) and not (step.preempted and owed + slots):
            sequence = self.waiting.peek()
            wanted = 1 + len(sequence.followers)
            if slots + wanted > self.config.max_sequences:
                break
            found = self._find(sequence)
            need = self.blocks.blocks_for(len(sequence.tokens)) - len(found.blocks)
            total = need + owed
            for block in found.blocks:
                if self.blocks.writable(block):
                    total += 1
            if self.running:
                total += slots + wanted
            if total > self.blocks.num_available:
                break
            self.waiting.pop()
            self._start(sequence, found, step, now)
            slots, owed = slots + wanted, owed + need

    def _prefill(self, step, now):
        left = self.config.token_budget - step.num_tokens
        prompts = list(self.running)
        for entry in step.entries:
            prompts.remove(entry.sequence)
        prompts = self._distinct(prompts, now)
        others = prompts[1:]
        while others:
            shortest = min(others, key=lambda s: s.remaining)
            others.remove(shortest)
            half = (self.config.token_budget - sum(e.length for e in step.entries if e.length == 1) + 1) // 2
            reserved = min(prompts[0].remaining, half)
            left -= self._enter(shortest, left - reserved, step, now)
        if prompts:
            self._enter(prompts[0], left, step, now)
