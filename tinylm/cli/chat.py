"""`tinylm chat`: talk with a model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tinylm.cli import parsing
from tinylm.cli.lines import LineReader
from tinylm.cli.open_model import add_pull_options, locate, open_model
from tinylm.cli.terminal import compile_notice, note, prompt_progress

if TYPE_CHECKING:
    from tinylm.chat import Answer
    from tinylm.conversation import Conversation, Turn

DEFAULT_MODEL = "smollm2-135m-instruct"
ROOM = 256
"""So many tokens of an answer there should be room for when something must be dropped."""


def parser() -> parsing.Parser:
    """The words that the command takes."""
    it = parsing.Parser(
        "chat",
        "Talk with a model. Answers go to standard output, everything else to standard error.",
        [
            ("tinylm chat", f"with {DEFAULT_MODEL}"),
            ("tinylm chat smollm2-135m-instruct --system 'Answer like a pirate.'", ""),
            ("tinylm chat --temperature 0.7 --load talk.json", "go on with a saved conversation"),
            ("echo 'What is a comet?' | tinylm chat -q", "each line of a pipe is a message"),
        ],
        notes='A line that ends with \\ goes on in the next; """ begins a message of several lines and ends it.\n'
        "Ctrl-C stops an answer; at an empty line it leaves, as Ctrl-D does. /help shows the commands.",
    )
    it.add_argument("named", nargs="?", metavar="MODEL", help="the model to talk with, like --model")
    it.add_argument("--system", metavar="TEXT", help="tell the model how to behave, before anything is said")
    it.add_argument("--load", metavar="FILE", help="go on with a conversation that /save wrote")
    it.add_argument(
        "--show-prompt", action="store_true", help="print exactly what the model reads, before each answer"
    )
    it.add_argument(
        "-q", "--quiet", action="store_true", help="no notes: only answers, errors and the prompt"
    )
    parsing.add_model_options(it, DEFAULT_MODEL)
    add_pull_options(it)
    parsing.add_sampling_options(it)
    return it


def run(arguments: argparse.Namespace) -> int:
    """Open the model and talk until the person leaves."""
    from tinylm.conversation import Conversation

    arguments.model = arguments.named or arguments.model
    parameters = parsing.sampling_parameters(arguments)
    folder = locate(arguments)
    with compile_notice(arguments.quiet):
        model, _ = open_model(folder, arguments)
        if arguments.load is None:
            conversation = Conversation(model, system=arguments.system)
        else:
            conversation = Conversation.load(model, arguments.load)
            if arguments.system is not None:
                conversation.system = arguments.system
        model.engine.compile()
    Session(conversation, parameters, arguments).talk()
    return 0


class Session:
    """A person's conversation at the command line."""

    def __init__(
        self, conversation: Conversation, parameters: dict[str, Any], arguments: argparse.Namespace
    ) -> None:
        self.conversation = conversation
        self.parameters = parameters
        self.name = arguments.model
        self.quiet = arguments.quiet
        self.show_prompt = arguments.show_prompt
        self.answer: Answer | None = None
        self.reader = LineReader()

    @property
    def context(self) -> int:
        """The tokens that the model can hold."""
        return self.conversation.model.engine.context_length

    def talk(self) -> None:
        """Read messages and commands, and answer, until there are no more."""
        from tinylm.cli.chat_commands import obey
        from tinylm.errors import TinylmError

        if not self.quiet and self.reader.is_terminal:
            note(f"{self.name}: {self.context:,} tokens of context. /help shows the commands, Ctrl-D leaves.")
        while True:
            try:
                message = self.reader.read(f"[{self.conversation.used_tokens:,}/{self.context:,}] > ")
                if message is None:
                    break
                if message.startswith("/") and not message.startswith("//"):
                    if obey(self, message):
                        break
                elif message.strip():
                    self.say(message[1:] if message.startswith("//") else message)
            except (TinylmError, OSError) as error:
                if not self.reader.is_terminal:
                    raise
                from tinylm.cli import describe

                note(describe(error))

    def say(self, message: str) -> None:
        """Say something and print the answer, making room first where the context is full."""
        from tinylm.errors import ContextError

        said = {"role": "user", "content": message}
        try:
            answer = self.begin(said)
        except ContextError as error:
            if not self.reader.is_terminal or not self.make_room(message, error):
                raise
            answer = self.begin(said)
        self.print_answer(answer)

    def begin(self, said: dict[str, str]) -> Answer:
        """The answer to a message."""
        parameters = self.fitting(self.parameters, [*self.conversation.messages, said])
        return self.conversation.stream(said, progress=self.progress, **parameters)

    def fitting(self, parameters: dict[str, Any], messages: list[dict[str, Any]]) -> dict[str, Any]:
        """Parameters that ask for no longer an answer to the messages than the context has room for."""
        limit = parameters.get("max_new_tokens")
        if (
            not isinstance(limit, int) or limit > self.context
        ):  # more than any context is a mistake to be told
            return parameters
        room = self.context - len(self.conversation.ids(messages))
        return {**parameters, "max_new_tokens": max(1, min(limit, room))}

    def progress(self, done: int, total: int) -> None:
        """Show how far a long prompt is read."""
        if not self.quiet:
            prompt_progress(done, total)

    def print_answer(self, answer: Answer) -> None:
        """Print an answer as it comes. Ctrl-C stops it, and what there is of it counts."""
        self.answer = answer
        if self.show_prompt:
            note(self.conversation.render())
        text = ""
        try:
            for piece in answer:
                text += piece
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            answer.close()
            if not answer.completion.ids:
                note("\nstopped before the first word; the message is taken back")
                return
            print(flush=True)
            note("stopped")
            return
        if not text.endswith("\n"):
            print(flush=True)
        if answer.completion.finish_reason == "length" and not self.quiet:
            used = len(answer.completion.prompt_ids) + len(answer.completion.ids)
            why = f"after {len(answer.completion.ids):,} tokens (--max-new-tokens)"
            if used >= self.context:
                why = "because the context is full: /drop forgets the oldest turn, /reset all"
            note(f"the answer was cut {why}")

    def make_room(self, message: str, error: Exception) -> bool:
        """Tell that the context is full, and what could be dropped; whether the person dropped enough."""
        conversation = self.conversation
        turns = conversation.turns()
        with_message = [*conversation.messages, {"role": "user", "content": message}]
        excess = len(conversation.ids(with_message)) - self.context
        some = enough(turns, excess + min(ROOM, self.context // 8)) or enough(turns, excess + 1)
        if not some:
            return False
        note(f"{error}\n  d  drop {what(turns[:some])}")
        if some < len(turns):
            note(f"  a  drop {what(turns)}, and keep the system message")
        note("  k  keep all, and do not say this")
        try:
            choice = self.reader.line("drop? ").strip().lower()
        except (EOFError, KeyboardInterrupt):
            choice = "k"
            self.reader.end_line()
        count = {"d": some, "a": len(turns)}.get(choice, 0)
        conversation.drop(count)
        return bool(count)


def enough(turns: list[Turn], tokens: int) -> int:
    """How many of the oldest turns must go to free so many tokens; 0 where all would not do."""
    freed = 0
    for count, turn in enumerate(turns, 1):
        freed += turn.tokens
        if freed >= tokens:
            return count
    return 0


def what(turns: list[Turn]) -> str:
    """Turns in words: `the oldest turn (312 tokens): 'Tell me ...'`."""
    tokens = sum(turn.tokens for turn in turns)
    first = " ".join(turns[0].text.split())
    shown = f"{first[:40]}..." if len(first) > 40 else first
    which = "the oldest turn" if len(turns) == 1 else f"the {len(turns)} oldest turns"
    return f"{which} ({tokens:,} tokens), from {shown!r}"
