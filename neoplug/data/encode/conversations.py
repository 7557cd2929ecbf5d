"""Conversations of rows as text: rendered by a chat template, and compared with what the rows say."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from neoplug.data.encode.chat import STUDENT_KEY, ChatTemplate, Rendered, RenderError, UnstableTemplate
from neoplug.data.encode.faults import LEAVES_OUT, NO_ROLE, REFUSED, THOUGHT_LEFT_OUT
from neoplug.data.encode.limits import LONGEST, TOO_LONG
from neoplug.data.encode.traces import left_out, unknown_roles
from neoplug.data.ingest.columns import Content
from neoplug.errors import RecipeError

TrainOn = Literal["answers", "all", "last"]
OnDrop = Callable[[int, str], Any]  # takes the number of a row that is dropped, and the reason


class Incomplete(Exception):
    """The text does not have all that the row says, or is longer than any row may be."""


@dataclass(frozen=True)
class ConversationRenderer:
    """Renders the conversations of rows for one model.

    keep_incomplete  keep rows of which the template leaves something out; they are reported
    """

    chat: ChatTemplate
    train_on: TrainOn
    keep_incomplete: bool

    @property
    def template(self) -> str:
        """Return how messages name the template."""
        return "the chat template" if self.chat.key == STUDENT_KEY else "the teacher's chat template"

    def render(self, contents: Iterable[Content], on_drop: OnDrop) -> dict[int, tuple[Rendered, list[str]]]:
        """Return row number -> the rendered conversation and what is to be reported of it.

        The rows that the template cannot render as they are meant are dropped.

        raises  RecipeError where the template takes more time or memory than any row may
        """
        rendered = {}
        for content in contents:
            try:
                rendered[content.number] = self._rendered(content)
            except RecipeError as error:  # of a template beyond a limit, which other rows would reach as well
                problems = [
                    replace(problem, what=f"row {content.number}: {problem.what}") for problem in error.problems
                ]
                raise RecipeError(problems) from error
            except UnstableTemplate as error:
                on_drop(content.number, f"{self.template} {error.reason}")
            except RenderError as error:
                on_drop(content.number, REFUSED.format(self.template, error))
            except Incomplete as error:
                on_drop(content.number, str(error))
        return rendered

    def _rendered(self, content: Content) -> tuple[Rendered, list[str]]:
        messages, tools = messages_of(content), content.values.get("tools")
        chat = self.chat.with_options(content.values.get("chat_template_kwargs"))
        rendered = chat.render(messages, self.train_on, tools)
        if len(rendered.text) > LONGEST:
            raise Incomplete(f"{self.template} writes {TOO_LONG}")
        faults, notes = [], []
        if roles := unknown_roles(chat, messages, tools):
            faults.append(f"{self.template} {NO_ROLE.format(', '.join(f'`{role}`' for role in roles))}")
        missing = left_out(chat, messages, tools, rendered.text)
        context = [
            part for part in missing if part.is_thought and rendered.turns and part.message not in rendered.turns
        ]
        if needed := dict.fromkeys(part.label for part in missing if part not in context):
            faults.append(f"{self.template} {LEAVES_OUT.format(', '.join(needed))}")
        if context:
            notes.append(THOUGHT_LEFT_OUT.format(self.template))
        if faults and not self.keep_incomplete:
            raise Incomplete("; ".join(faults))
        closed, note = chat.closed(rendered, messages)
        if faults:
            notes.append(f"kept, {'; '.join(faults)}")
        return closed, [*notes, *filter(None, [note])]


def messages_of(content: Content) -> list[dict[str, Any]]:
    """Return the messages of a conversation, or an Alpaca row as one user turn and one assistant turn."""
    if content.kind == "messages":
        messages: list[dict[str, Any]] = content.values["messages"]
        return messages
    question = "\n\n".join(content.values[name] for name in ("instruction", "input") if name in content.values)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": content.values["output"]}]
