"""The scheduler with plain loops and counters."""

from tiny_llm.engine.request import State, computed_after


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
        plan = self._new_plan(now)
        self._decode(plan)
        self._admit(plan)
        while True:
            self._prefill(plan)
            if plan.entries or not self.running:
                return self._step(plan)
            self._preempt(self.running[-1], plan)

    def finish(self, step, results, now):
        self.log.now = now
        self.log.tell("step", tokens=step.num_tokens)
        ended = []
        for i in range(len(step.shares)):
            share = step.shares[i]
            sequence = self.sequences.find(share.sequence)
            if sequence is not None:
                sequence.computed = computed_after(share, results[i])
                if share.length > share.wanted:
                    self.ledger.keep(sequence)
                for _ in results[i].tokens[:1]:
                    self.sequences.fork(sequence)
                    self._append(sequence, results[i].tokens)
                if sequence.state is State.FINISHED:
                    ended.append(sequence)
        return ended

    def _decode(self, plan):
        done = 0
        while done < len(self.running):
            sequence = self.running[done]
            if sequence.remaining == 1 and not self._enter(sequence, 1, plan):
                self._preempt(self.running[-1], plan)
            else:
                done += 1

    def _admit(self, plan):
        owed = slots = 0
        for s in self.running:
            owed += self.blocks.blocks_for(len(s.tokens)) - len(s.block_table)
            slots += 1 + len(s.followers)
        while len(self.waiting) and not (plan.preempted and owed + slots):
            sequence = self.waiting.peek()
            wanted = 1 + len(sequence.followers)
            if slots + wanted > self.config.max_sequences:
                break
            found = self.ledger.match(sequence)
            need = self.blocks.blocks_for(len(sequence.tokens)) - len(found.blocks)
            total = need + owed
            for block in found.blocks:
                if self.blocks.writable(block):
                    total += 1
            if self.running:
                total += slots + wanted
            if total > self.blocks.num_available:
                break
            self._start(found, plan)
            slots, owed = slots + wanted, owed + need

    def _prefill(self, plan):
        left = self.config.token_budget - plan.num_tokens
        prompts = list(self.running)
        for sequence in plan.entries:
            prompts.remove(sequence)
        prompts = self._distinct(prompts)
        others = prompts[1:]
        while others:
            shortest = min(others, key=lambda s: s.remaining)
            others.remove(shortest)
            half = (self.config.token_budget - sum(e.length for e in plan.entries.values() if e.length == 1) + 1) // 2
            reserved = min(prompts[0].remaining, half)
            left -= self._enter(shortest, left - reserved, plan)
        if prompts:
            self._enter(prompts[0], left, plan)
