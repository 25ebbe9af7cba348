"""A kernel's source: a `.metal` file, or a body in a string; and its C++ for the simulator."""

from dataclasses import dataclass
from pathlib import Path

from tiny_llm.kernels.sim.rewrite import allocate_threadgroup
from tiny_llm.kernels.sim.rewrite_private import mark_private
from tiny_llm.kernels.sim.signature import Signature

BODY_MARK = "// BODY"


@dataclass(frozen=True)
class Source:
    """`label` is what messages call the file; header and body begin at these lines of it."""

    label: str
    body: str
    header: str = ""
    header_line: int = 1
    body_line: int = 1

    @classmethod
    def read(cls, path: Path) -> "Source":
        """A `.metal` file. Raises ValueError where it can't be read, and as `parse` does."""
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error
        return cls.parse(text, path)

    @classmethod
    def parse(cls, text: str, path: Path) -> "Source":
        """The text of a `.metal` file: helper functions, then a line `// BODY`, then the body; without that line all
        is body. Raises ValueError where there are two such lines."""
        lines = text.split("\n")
        marks = [number for number, line in enumerate(lines) if line.strip() == BODY_MARK]
        if len(marks) > 1:
            raise ValueError(f"{path}: found {len(marks)} lines `{BODY_MARK}` (line {marks[1] + 1}), expected one")
        if not marks:
            return cls(path.name, text)
        header = "\n".join(lines[: marks[0]]) + "\n"
        return cls(path.name, "\n".join(lines[marks[0] + 1 :]), header, 1, marks[0] + 2)

    def line(self, number: int) -> str:
        """The text of a line of the file, without its indentation; empty where there is none."""
        for text, first in ((self.body, self.body_line), (self.header, self.header_line)):
            lines = text.split("\n")
            if 0 <= number - first < len(lines):
                return lines[number - first].strip()
        return ""


def cpp(source: Source, signature: Signature, check: bool = False) -> str:
    """The kernel as C++ with an entry point that takes its arguments as an array of pointers.

    `check`: for check mode, in which a thread's own variables know what of them was written.
    """
    header, body = source.header, source.body
    if check:
        header, body = mark_private(header, within_function=False), mark_private(body, within_function=True)
    arguments = [argument.cast(i) for i, argument in enumerate(signature.arguments)]
    arguments += [f"place->{name}" for name, _ in signature.attributes]
    return "\n".join(
        [
            f'#line {source.header_line} "{source.label}"',
            allocate_threadgroup(header),
            signature.declaration,
            f'#line {source.body_line} "{source.label}"',
            allocate_threadgroup(body),
            "}",
            '#line 1 "entry"',
            'extern "C" __attribute__((no_sanitize("thread")))',
            "void sim_entry(void* const* argument, const sim::Context<uint3>* place) {",
            f"  {signature.function}{signature.template_arguments}({', '.join(arguments)});",
            "}",
            "",
        ]
    )
