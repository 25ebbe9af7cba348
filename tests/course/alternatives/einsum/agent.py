"""Tables and comprehensions."""

import inspect
import json

from tiny_llm.apps.agent.nouns import AgentCall, AgentReply, Approval
from tiny_llm.decode.reply import CallArguments, CallBegin, Content, Reasoning


def tool_schema(function):
    import re

    parameters = inspect.signature(function, eval_str=True).parameters.values()
    wrong = [p for p in parameters if p.annotation is p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if wrong:
        raise ValueError(f"{wrong[0]}: a single value with a type, please")
    fields = {p.name: (p.annotation, ... if p.default is p.empty else p.default) for p in parameters}
    first = re.match(r"(?:.+\n?)*", inspect.getdoc(function) or "")[0]
    model = create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields)  # noqa: F821
    schema = model.model_json_schema()
    return {"name": function.__name__, "description": re.sub(r"\s+", " ", first).strip(), "parameters": schema}


def joined_reply(parts, first):
    def text(kind, index=None):
        return "".join(p.text for p in parts if isinstance(p, kind) and index in (None, getattr(p, "index", None)))

    def parsed(source):
        try:
            found = json.loads(source)
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    begun = sorted((p.index, p.name) for p in parts if isinstance(p, CallBegin))
    texts = [text(CallArguments, index) for index, _ in begun]
    calls = [
        AgentCall(f"call_{first + n}", name, parsed(source), source)
        for n, ((_, name), source) in enumerate(zip(begun, texts, strict=True))
    ]
    return AgentReply(text(Reasoning), text(Content), tuple(calls))


def approval_of(tool, call, rules, tainted):
    if rules.denies(call):
        return Approval.REFUSE
    asks = tool.effects and (tainted or not rules.allows(call))
    return {True: Approval.ASK, False: Approval.RUN}[asks]


class Agent:
    async def run(self, task=None):
        self._begin()
        if task is not None:
            yield self.session.add("user", text=task)
        async for event in self._act(self.session.unfinished()):
            yield event
        reason = self.bound_reached()
        while not reason:
            async for event in self._ask():
                yield event
            if calls := self.session.unfinished():
                async for event in self._act(calls):
                    yield event
                reason = self.bound_reached()
            else:
                reason = self._stop or "answered"
        yield self.session.add("end", reason=reason, steps=self.steps, tokens=self.tokens)
