"""The learner's tools: exercises cut out of the engine, checks that say what is wrong, progress, pictures."""


class CourseError(ValueError):
    """Something about the course's or a learner's files, told in one line with the file's name."""


class NotDone(NotImplementedError):  # noqa: N818  what it says is no error of the learner's
    """A task that still waits for its solution. `task` is its id."""

    def __init__(self, task: str):
        super().__init__(f"{task} is not done yet")
        self.task = task


__all__ = ["CourseError", "NotDone"]
