"""Conditions one by one, and loops that count."""

import inspect
import json

from tiny_llm.apps.agent.nouns import AgentCall, AgentReply, Approval
from tiny_llm.decode.reply import CallArguments, CallBegin, Content, Reasoning


def tool_schema(function):
    signature = inspect.signature(function, eval_str=True)
    fields = {}
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            raise ValueError("no *args")
        if parameter.kind is parameter.VAR_KEYWORD:
            raise ValueError("no **kwargs")
        if parameter.annotation is parameter.empty:
            raise ValueError("no type")
        if parameter.default is parameter.empty:
            fields[parameter.name] = (parameter.annotation, ...)
        else:
            fields[parameter.name] = (parameter.annotation, parameter.default)
    words = []
    for line in (inspect.getdoc(function) or "").split("\n"):
        if not line.strip():
            break
        words += line.split()
    description = " ".join(words)
    model = create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields)  # noqa: F821
    return {"name": function.__name__, "description": description, "parameters": model.model_json_schema()}


def joined_reply(parts, first):
    calls = []
    for part in parts:
        if type(part) is CallBegin:
            while len(calls) <= part.index:
                calls.append(["", ""])
            calls[part.index][0] = part.name
        elif type(part) is CallArguments:
            calls[part.index][1] += part.text
    made = []
    for name, text in calls:
        arguments = None
        try:
            parsed = json.loads(text)
            if type(parsed) is dict:
                arguments = parsed
        except Exception:
            pass
        made.append(AgentCall(f"call_{first}", name, arguments, text))
        first += 1
    reasoning = "".join(part.text for part in parts if type(part) is Reasoning)
    content = "".join(part.text for part in parts if type(part) is Content)
    return AgentReply(reasoning, content, tuple(made))


def approval_of(tool, call, rules, tainted):
    if rules.denies(call):
        return Approval.REFUSE
    if tool.effects and tainted:
        return Approval.ASK
    if tool.effects and not rules.allows(call):
        return Approval.ASK
    return Approval.RUN


class Agent:
    async def run(self, task=None):
        self._begin()
        if task is not None:
            yield self.session.add("user", text=task)
        async for event in self._act(self.session.unfinished()):
            yield event
        while True:
            reason = self.bound_reached()
            if reason:
                break
            async for event in self._ask():
                yield event
            calls = self.session.unfinished()
            if not calls:
                reason = self._stop if self._stop else "answered"
                break
            async for event in self._act(calls):
                yield event
        yield self.session.add("end", reason=reason, steps=self.steps, tokens=self.tokens)
