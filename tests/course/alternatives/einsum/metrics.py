"""With other tools of the standard library and numpy."""


class Histogram:
    def observe(self, value):
        import numpy as np

        self.counts[int(np.searchsorted(self.bounds, value, side="left"))] += 1
        self.sum = sum((self.sum, value))

    def cumulative(self):
        import numpy as np

        totals = np.cumsum(self.counts).astype(float).tolist()
        return list(zip([*map(str, map(float, self.bounds)), "+Inf"], totals, strict=True))


class Census:
    def note(self, event):
        places = {"arrival": self.waiting, "preempt": self.waiting, "admit": self.running, "finish": None}
        if event.kind in places:
            name = (event.request, event.sequence)
            self.waiting.discard(name)
            self.running.discard(name)
            if places[event.kind] is not None:
                places[event.kind].add(name)
