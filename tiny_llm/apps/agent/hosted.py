"""Tools that a server runs for its clients, instead of leaving the calls to them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tiny_llm.apps.agent.builtin import PASSAGES, SHOWN, Builtin, LongOutputs, builtin_tool, make_builtin
from tiny_llm.apps.agent.documents import AnswerSearches, Documents
from tiny_llm.apps.agent.files import Root
from tiny_llm.apps.agent.loop import Agent
from tiny_llm.apps.agent.nouns import AgentLimits, ApprovalRules, ChatMessages, ChatModel
from tiny_llm.apps.agent.session import AgentSession
from tiny_llm.config.prompts import builtin_tools

SEARCH = "search_documents"
ON_FILES = tuple(name for name in builtin_tools().tools if name != SEARCH)  # the tools that need a root


@dataclass(frozen=True)
class HostedTools:
    """What a server lets clients use: the search of `documents`, and the other built-in tools on `root`.

    There is no user to ask: a call with effects is refused unless `rules` allow it, and always after text from outside.
    """

    documents: Documents | None = None
    root: Root | None = None
    rules: ApprovalRules = field(default_factory=ApprovalRules)

    def searches(self, most: int | None) -> AnswerSearches | None:
        """Return the searches for one answer, each of at most `most` passages; None for a server without documents."""
        return None if self.documents is None else AnswerSearches(self.documents, most or PASSAGES)

    def agent(
        self,
        model: ChatModel,
        names: Sequence[str],
        messages: ChatMessages,
        limits: AgentLimits,
        searches: AnswerSearches | None,
    ) -> Agent:
        """Return an agent with the tools `names` that goes on with a conversation, whose session is kept nowhere.

        The conversation counts as tainted if it has a tool's result, because any tool may have given foreign text.
        """
        on_files = [name for name in names if name != SEARCH]
        outputs = LongOutputs(SHOWN if "read_file" in names else 1 << 30)  # without it nothing could read on
        tools = []
        if searches is not None and SEARCH in names:
            tools.append(builtin_tool(SEARCH, searches.run))
        if on_files and self.root is not None:
            tools += make_builtin(Builtin(self.root, outputs), on_files)
        session = AgentSession()
        session.messages = [dict(message) for message in messages]
        session.tainted = any(message["role"] == "tool" for message in messages)
        return Agent(model, tools, session, limits=limits, rules=self.rules, outputs=outputs)
