"""Tools in `tiny-llm chat`: while /tools is on, a message is a task of an agent."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiny_llm.apps.agent.builtin import Builtin, LongOutputs, make_builtin
from tiny_llm.apps.agent.chat import LLMChat
from tiny_llm.apps.agent.files import Root
from tiny_llm.apps.agent.loop import Agent
from tiny_llm.apps.agent.nouns import AgentReply, ReplyEnd
from tiny_llm.apps.agent.session import AgentSession
from tiny_llm.apps.chat.conversation import Conversation
from tiny_llm.cli.agent import index_below, open_documents, run_shown
from tiny_llm.cli.agent_view import ask_user, describe
from tiny_llm.cli.session import remark
from tiny_llm.config.prompts import builtin_tools

if TYPE_CHECKING:
    from tiny_llm.engine.llm import LLM


class ChatTools:
    """An agent that goes on with a conversation, on the files of a folder and its index of documents.

    Raises ValueError for no folder.
    """

    def __init__(
        self,
        llm: "LLM",
        settings: dict[str, Any],
        template: dict[str, Any],
        conversation: Conversation,
        folder: Path,
    ):
        self.session = AgentSession(system=conversation.system or builtin_tools().system)
        for message in conversation.messages[conversation.start :]:
            if message["role"] == "user":
                self.session.add("user", text=message["content"])
            else:
                said = AgentReply(message.get("reasoning_content", ""), message["content"], ())
                self.session.reply(said, ReplyEnd("stop"))
        self.files = Root(folder, self.session.change)
        self.model = LLMChat(llm, settings, {"enable_thinking": False, **template})
        outputs = LongOutputs()
        self.documents = open_documents(index_below(folder))
        tools = make_builtin(Builtin(self.files, outputs, self.documents))
        self.agent = Agent(self.model, tools, self.session, approve=ask_user, outputs=outputs)

    def answer(self, text: str) -> str:
        """Work on a message, show what happens, and return the last words of the model."""
        reason = asyncio.run(run_shown(self.agent, text))
        if reason != "answered":
            remark(f"stopped: {describe(reason)}")
        replies = [message for message in self.session.messages if message["role"] == "assistant"]
        return str(replies[-1]["content"]) if replies else ""

    def undo(self) -> list[str]:
        """Take back the file changes of the last message with changes, and return their paths."""
        return self.session.undo(self.files)

    def close(self) -> None:
        """End the agent's thread and close the folder."""
        self.model.close()
        self.files.close()
        if self.documents is not None:
            self.documents.close()
