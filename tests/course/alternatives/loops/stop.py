"""Stop strings character by character."""


class StopStrings:
    def add(self, piece):
        shown = ""
        for character in piece:
            self.held += character
            found = [self.held.index(stop) for stop in self.stops if stop in self.held]
            if found:
                shown, self.held = shown + self.held[: min(found)], ""
                return shown, True
            while self.held and not any(stop.startswith(self.held) for stop in self.stops):
                shown, self.held = shown + self.held[0], self.held[1:]
        return shown, False
