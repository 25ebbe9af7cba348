"""Record a real chat as docs/terminal.svg: the answers are the shipped model's own.

python docs/terminal.py
"""

import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

QUESTIONS = ("What is a KV cache?", "What is continuous batching?", "What is paged attention?")


def main() -> None:
    command = [sys.executable, "-m", "tiny_llm", "chat", "--temperature", "0"]
    done = subprocess.run(command, input="\n".join(QUESTIONS), check=True, capture_output=True, text=True)
    answers = done.stdout.strip().split("\n")
    assert len(answers) == len(QUESTIONS), done.stdout
    console = Console(record=True, width=100, file=StringIO())
    console.print(Text("$ make chat", style="bold"))
    for question, answer in zip(QUESTIONS, answers, strict=True):
        console.print(Text(f"> {question}", style="bold cyan"))
        console.print(Text(answer))
    svg = console.export_svg(title="tiny-llm, its own pocket model, offline")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)  # fonts of another site
    Path(__file__).with_suffix(".svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
