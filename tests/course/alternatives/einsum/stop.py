"""Stop strings by trying every place in the text."""


class StopStrings:
    def add(self, piece):
        text = self.held + piece
        for i in range(len(text)):
            rest = text[i:]
            if any(rest.startswith(stop) for stop in self.stops):
                self.held = ""
                return text[:i], True
        for i in range(len(text)):
            if any(stop.startswith(text[i:]) for stop in self.stops):
                self.held = text[i:]
                return text[:i], False
        self.held = ""
        return text, False
