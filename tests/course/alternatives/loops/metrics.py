"""By hand."""


class Histogram:
    def observe(self, value):
        low, high = 0, len(self.bounds)
        while low < high:
            middle = (low + high) // 2
            if self.bounds[middle] < value:
                low = middle + 1
            else:
                high = middle
        self.sum = self.sum + value
        self.counts[low] = self.counts[low] + 1

    def cumulative(self):
        found = []
        total = 0
        for number, count in enumerate(self.counts):
            total += count
            name = "+Inf" if number == len(self.bounds) else repr(float(self.bounds[number]))
            found.append((name, total * 1.0))
        return found


class Census:
    def note(self, event):
        sequence = event.request, event.sequence
        if event.kind not in {"arrival", "admit", "preempt", "finish"}:
            return
        for group in (self.running, self.waiting):
            if sequence in group:
                group.remove(sequence)
        if event.kind == "admit":
            self.running.add(sequence)
        elif event.kind != "finish":
            self.waiting.add(sequence)
