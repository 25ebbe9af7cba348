"""What can be typed in the chat instead of a message: /help, /save FILE and so on."""

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from tiny_llm.apps.chat.conversation import Conversation
from tiny_llm.cli import conversation_file
from tiny_llm.cli.options import SamplingOptions, parse_logit_bias
from tiny_llm.cli.session import Session
from tiny_llm.cli.terminal import table
from tiny_llm.config import SamplingParams
from tiny_llm.views.units import size

SETTINGS = tuple(f.name for f in fields(SamplingOptions))


class Commands:
    """Each method `do_x` is the command /x; its docstring is what /help shows, usage and meaning."""

    def __init__(self, session: Session):
        self.session = session

    @classmethod
    def names(cls) -> list[str]:
        return ["/" + name.removeprefix("do_") for name in vars(cls) if name.startswith("do_")]

    def run(self, line: str) -> None:
        """Obey a line that starts with "/". Raises ValueError for what it can't, EOFError to end the chat."""
        name, _, argument = line.strip().partition(" ")
        if name not in self.names():
            raise ValueError(
                f"{name}: unknown command; known are {', '.join(self.names())}. "
                "Put a space before the slash to send the line as it is."
            )
        getattr(self, "do_" + name[1:])(argument.strip())

    def do_help(self, _: str) -> None:
        """/help | List the commands."""
        docs = [getattr(self, "do_" + name[1:]).__doc__.split(" | ") for name in self.names()]
        table([(usage, " ".join(meaning.split())) for usage, meaning in docs])
        print(
            "Alt-Enter or a \\ at the end of a line starts a new line; Ctrl-C stops the answer, Ctrl-D ends the chat."
        )

    def do_system(self, text: str) -> None:
        """/system [TEXT|none] | Show, set or remove the system prompt."""
        conversation = self.session.conversation
        if text:
            conversation.system = None if text == "none" else text
        print(f"system prompt: {conversation.system or 'none'}")

    def do_set(self, argument: str) -> None:
        """/set [NAME VALUE] | Show the sampling settings, or change one; the value "none" unsets it."""
        session = self.session
        if argument:
            name, _, text = argument.partition(" ")
            session.settings = changed(session.settings, name, text.strip())
        now = SamplingParams.resolve(session.requested(), session.llm.defaults)
        own = session.settings.keys()
        table([(name, f"{getattr(now, name)!r}{'' if name in own else '  (default)'}") for name in SETTINGS])

    def do_retry(self, _: str) -> None:
        """/retry | Answer the last message again."""
        self.session.retry()

    def do_spec(self, _: str) -> None:
        """/spec | Colour the tokens that were guessed: accepted green, bonus cyan, corrected yellow; again: stop."""
        session = self.session
        if session.llm.engine_config.speculation.drafter == "none":
            raise ValueError(
                "/spec: nothing is guessed here; start the chat with --speculate, such as --speculate draft"
            )
        session.shows_guesses = not session.shows_guesses
        print(f"colours of guesses: {'on' if session.shows_guesses else 'off'}")

    def do_tools(self, folder: str) -> None:
        """/tools [FOLDER|off] | Let the model use tools on the files of a folder, or stop; alone: list the tools."""
        session = self.session
        if folder == "off":
            session.close_tools()
        elif folder:
            session.open_tools(_path(folder, "/tools"))
        if session.tools is None:
            print("tools: off; /tools . turns them on for the current folder")
            return
        table([(tool.name, tool.description) for tool in session.tools.agent.tools.values()])
        print(f"folder: {session.tools.files.folder}; calls with effects are asked for")

    def do_undo(self, _: str) -> None:
        """/undo | Take back the file changes that tools made for the last message."""
        if self.session.tools is None:
            raise ValueError("/undo: no tools are on; /tools FOLDER turns them on")
        for path in self.session.tools.undo() or ["nothing to take back"]:
            print(path)

    def do_save(self, file: str) -> None:
        """/save FILE | Write the conversation to a JSON file."""
        path = _path(file, "/save")
        conversation_file.save(self.session.conversation, path, self.session.llm.name)
        print(f"saved {len(self.session.conversation.messages)} messages to {path}")

    def do_load(self, file: str) -> None:
        """/load FILE | Go on with a saved conversation instead of this one."""
        path = _path(file, "/load")
        self.session.conversation = conversation_file.load(path)
        print(f"loaded {len(self.session.conversation.messages)} messages from {path}")

    def do_clear(self, _: str) -> None:
        """/clear | Forget the conversation; system prompt and settings stay."""
        self.session.conversation = Conversation(self.session.conversation.system)

    def do_stats(self, _: str) -> None:
        """/stats | Tokens, speed and memory so far."""
        from tiny_llm.views.answers import counts_in_words, peak_memory, timing

        session, stats = self.session, self.session.llm.last_stats
        conversation, context = session.conversation, session.llm.max_context
        used = session.count_tokens(conversation.visible()) if conversation.messages else 0
        rows = [
            ("messages", str(len(conversation.messages))),
            ("context", f"{used} of {context} tokens"),
            ("written", f"{session.generated} tokens in {session.answers} answers"),
        ]
        if stats is not None:
            rows += [
                ("last answer", timing(stats)),
                ("its prompt", f"{stats.prompt_tokens} tokens, {stats.cached_tokens} of them from the cache"),
                ("peak memory", size(peak_memory(stats))),
            ]
        if stats is not None and stats.prefix_miss is not None:
            miss = stats.prefix_miss
            rows.append(("cache miss", f"{miss.reason}: {miss.text!r:.60}"))
        table([*rows, *counts_in_words(session.llm)])

    def do_quit(self, _: str) -> None:
        """/quit | End the chat."""
        raise EOFError


def changed(settings: dict[str, Any], name: str, text: str) -> dict[str, Any]:
    """`settings` with one of them read from `text`. Raises ValueError naming what is wrong with it."""
    if name not in SETTINGS:
        raise ValueError(f"{name}: unknown setting; known are {', '.join(SETTINGS)}")
    if not text:
        raise ValueError(f"{name}: no value given; /set {name} VALUE, or none")
    others = {key: value for key, value in settings.items() if key != name}
    if text == "none":
        return others
    merged = others | {name: _value(name, text)}
    SamplingParams.resolve(merged)
    return merged


def _value(name: str, text: str) -> Any:
    if name == "logit_bias":
        return parse_logit_bias(text.split())
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    if name == "stop":
        return tuple(value) if isinstance(value, list) else (value if isinstance(value, str) else text,)
    return value


def _path(file: str, command: str) -> Path:
    if not file:
        raise ValueError(f"{command}: name a file, such as {command} talk.json")
    if "\0" in file:
        raise ValueError(f"{command}: expected the name of a file, found a NUL character in it")
    return Path(os.path.expanduser(file))
