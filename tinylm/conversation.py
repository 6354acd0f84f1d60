"""A conversation with a model: what was said, how much of the context it takes, and keeping it in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from collections.abc import Sequence as ListOf
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinylm.chat import Answer, answer
from tinylm.chat_template import check_messages
from tinylm.completion import Completion
from tinylm.continuation import Progress
from tinylm.errors import ChatTemplateError, ContextError, TinylmError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tinylm.language_model import LanguageModel
    from tinylm.parameters import Parameters

Message = dict[str, Any]

FILE_FORMAT = "tinylm conversation"


@dataclass(frozen=True)
class Turn:
    """A message of the user with what follows it: places in the list of messages, and its tokens."""

    start: int
    end: int
    tokens: int
    text: str


class Conversation:
    """A conversation with a model: it keeps the messages, and what the model has read of them.

    `messages` are dicts with `role` and `content`; `tools`, `documents` and `variables` go to the chat
    template. An answer joins the messages when it has ended, also one that was left early. Raises
    ChatTemplateError for a model without a chat template, or messages that its template refuses.

    >>> conversation = Conversation(lm, system="Answer in one word.")
    >>> str(conversation.say("The capital of France?"))
    'Paris'
    """

    def __init__(
        self,
        model: LanguageModel,
        messages: ListOf[Mapping[str, Any]] = (),
        *,
        system: str | None = None,
        tools: ListOf[Mapping[str, Any]] | None = None,
        documents: ListOf[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.messages: list[Message] = [dict(message) for message in messages]
        self.options: dict[str, Any] = {
            "tools": tools,
            "documents": documents,
            "chat_template": chat_template,
        }
        self.variables = dict(variables or {})
        self.sequence = model.engine.new_sequence()
        if self.messages:
            check_messages(self.messages)
        if system is not None:
            self.system = system
        self.render(self._with_a_question())

    @property
    def system(self) -> str | None:
        """The system message, which leads; setting it to None takes it away."""
        leads = self.messages and self.messages[0]["role"] == "system"
        return str(self.messages[0]["content"]) if leads else None

    @system.setter
    def system(self, text: str | None) -> None:
        if self.system is not None:
            del self.messages[0]
        if text is not None:
            self.messages.insert(0, {"role": "system", "content": text})

    def render(self, messages: ListOf[Message] | None = None, add_generation_prompt: bool = True) -> str:
        """The text that the model reads."""
        return self.model.tokenizer.apply_chat_template(
            self.messages if messages is None else messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **self.options,
            **self.variables,
        )

    def ids(self, messages: ListOf[Message] | None = None) -> list[int]:
        """The ids that the model reads before an answer."""
        return self.model.prompt_ids(self.render(messages), add_special_tokens=False)

    def say(self, message: str | Message, **parameters: Unpack[Parameters]) -> Completion:
        """Say something, and get the answer."""
        answer = self.stream(message, **parameters)
        for _ in answer:
            pass
        return answer.completion

    def stream(
        self,
        message: str | Message | None = None,
        *,
        progress: Progress | None = None,
        **parameters: Unpack[Parameters],
    ) -> Answer:
        """Say something (None: nothing new), and get the answer piece by piece.

        Raises ContextError where the conversation leaves no room for an answer; nothing is said then, and
        `turns` tells what could be dropped.
        """
        messages = list(self.messages)
        if message is not None:
            messages.append(
                {"role": "user", "content": message} if isinstance(message, str) else dict(message)
            )
        return self._answer(messages, self.messages, progress, parameters)

    def _answer(
        self,
        messages: list[Message],
        before: list[Message],
        progress: Progress | None,
        parameters: Parameters,
    ) -> Answer:
        def ended(completion: Completion) -> None:
            # Interrupted before the first word, nothing was said.
            written = [{"role": "assistant", "content": completion.text}]
            self.messages = messages + written if completion.ids else before

        ids = self.ids(messages)
        self.check_room(len(ids))
        told = answer(self.model, ids, self.sequence, parameters, progress=progress, ended=ended)
        self.messages = messages
        return told

    def retry(self, *, progress: Progress | None = None, **parameters: Unpack[Parameters]) -> Answer:
        """Another answer in place of the last. Raises ChatTemplateError where nothing was said yet."""
        said = [place for place, message in enumerate(self.messages) if message["role"] == "user"]
        if not said:
            raise ChatTemplateError("there is nothing to answer again: nothing was said yet")
        return self._answer(self.messages[: said[-1] + 1], self.messages, progress, parameters)

    def reset(self) -> None:
        """Forget everything but the system message."""
        del self.messages[0 if self.system is None else 1 :]

    @property
    def used_tokens(self) -> int:
        """How much of the context the conversation takes, with the opening of the next answer."""
        return len(self.ids(self._with_a_question())) if self.messages else 0

    def _with_a_question(self) -> list[Message]:
        """The messages; a template may want one of the user beside that of the system."""
        said = any(message["role"] != "system" for message in self.messages)
        return self.messages if said else [*self.messages, {"role": "user", "content": ""}]

    def turns(self) -> list[Turn]:
        """The turns from the oldest, each with the tokens that dropping it would free."""
        starts = [place for place, message in enumerate(self.messages) if message["role"] == "user"]
        ends = [*starts[1:], len(self.messages)] if starts else []
        return [
            Turn(start, end, self._tokens_freed(start, end), str(self.messages[start]["content"]))
            for start, end in zip(starts, ends, strict=True)
        ]

    def _tokens_freed(self, start: int, end: int) -> int:
        try:
            return len(self.ids()) - len(self.ids(self.messages[:start] + self.messages[end:]))
        except TinylmError:  # the template refuses what would be left
            texts = (str(message.get("content", "")) for message in self.messages[start:end])
            return sum(len(self.model.tokenizer.encode(text, add_special_tokens=False)) for text in texts)

    def drop(self, count: int = 1) -> int:
        """Forget the oldest turns, but never the system message; returns how many there were to drop."""
        oldest = self.turns()[:count]
        if oldest:
            del self.messages[oldest[0].start : oldest[-1].end]
        return len(oldest)

    def check_room(self, tokens: int) -> None:
        """Raises ContextError where a prompt leaves no room for an answer, saying what could be dropped."""
        context = self.model.engine.context_length
        if tokens < context:
            return
        turns = self.turns()
        what = "this message is too long for this model"
        system = [message for message in self.messages[:1] if message["role"] == "system"]
        if system and (alone := len(self.ids([*system, {"role": "user", "content": ""}]))) >= context:
            what = f"the system message alone takes {alone:,}"
        elif turns:
            what = f"the oldest of the {len(turns)} turns before takes {turns[0].tokens:,}: drop it, or start anew"
        raise ContextError(
            f"the context is full: with this message the conversation has {tokens:,} tokens, and the model's "
            f"context holds {context:,}; {what}"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the messages, and what goes to the template with them, as JSON."""
        record = {
            "format": FILE_FORMAT,
            "version": 1,
            "messages": self.messages,
            **{
                name: value for name, value in (*self.options.items(), ("variables", self.variables)) if value
            },
        }
        file = Path(path)
        partial = file.with_name(f".{file.name}.partial")
        try:
            partial.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            partial.replace(file)
        except OSError as error:
            partial.unlink(missing_ok=True)
            error.filename, error.filename2 = str(file), None  # the file that was asked for
            raise

    @classmethod
    def load(cls, model: LanguageModel, path: str | os.PathLike[str]) -> Conversation:
        """Read a conversation that was saved. Raises ChatTemplateError for a file that holds none."""
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ChatTemplateError(f"{path} does not hold a conversation: {error}") from None
        if isinstance(record, list):
            record = {"format": FILE_FORMAT, "messages": record}
        if (
            not isinstance(record, dict)
            or record.get("format") != FILE_FORMAT
            or record.get("version", 1) != 1
        ):
            raise ChatTemplateError(f"{path} does not hold a conversation of this version of tinylm")
        messages = record.get("messages")
        if messages:
            check_messages(messages)
        options = {name: record.get(name) for name in ("tools", "documents", "chat_template", "variables")}
        return cls(model, messages or [], **options)
