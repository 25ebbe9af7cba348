"""The parts of an answer: the thought, the text, and the calls of tools. Every API formats the same parts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reasoning:
    """A piece of the thought, without its tags."""

    text: str


@dataclass(frozen=True)
class Content:
    """A piece of the answer's text."""

    text: str


@dataclass(frozen=True)
class CallBegin:
    """The begin of a tool call. `index` counts the answer's calls from 0."""

    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of the arguments of the call `index`. All pieces together are a JSON object, unless it is cut off."""

    index: int
    text: str


AnswerPart = Reasoning | Content | CallBegin | CallArguments
