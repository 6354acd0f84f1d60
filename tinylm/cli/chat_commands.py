"""The commands of `tinylm chat`: lines that begin with a slash."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tinylm.cli.terminal import note
from tinylm.errors import ParameterError

if TYPE_CHECKING:
    from tinylm.cli.chat import Session

HELP = """\
  /help              this
  /retry             another answer to the last message
  /reset             forget everything but the system message
  /drop [N]          forget the N oldest turns (one)
  /system [TEXT]     show, or set, what the model is told before anything is said; 'off' takes it away
  /save FILE         write the conversation to a file
  /load FILE         go on with one that was saved
  /set [NAME VALUE]  show the parameters of answers, or set one: /set temperature 0.7 (null: the model's own)
  /stats             figures of the conversation and the last answer
  /show              print exactly what the model would read now
  /quit              leave, like Ctrl-D
A line that ends with \\ goes on in the next. \"\"\" begins a message of several lines and ends it.
Ctrl-C stops an answer. To say something that begins with a slash, begin with two."""


def obey(session: Session, line: str) -> bool:
    """Do what a command says; whether it says to leave."""
    name, _, rest = line[1:].strip().partition(" ")
    if name in ("quit", "exit", "q"):
        return True
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, [*COMMANDS, "quit"], n=1)
        note(f"there is no /{name}; " + (f"did you mean /{close[0]}?" if close else "see /help"))
        return False
    COMMANDS[name](session, rest.strip())
    return False


def show_help(session: Session, rest: str) -> None:
    """`/help`."""
    note(HELP)


def retry(session: Session, rest: str) -> None:
    """`/retry`: with other draws, where the words are drawn."""
    from tinylm.chat import chat_parameters

    parameters = {name: value for name, value in session.parameters.items() if name != "seed"}
    if "seed" in session.parameters:
        parameters["do_sample"] = True
    messages = list(session.conversation.messages)
    while messages and messages[-1]["role"] != "user":
        messages.pop()
    if messages:
        parameters = session.fitting(parameters, messages)
    answer = session.conversation.retry(progress=session.progress, **parameters)
    if not chat_parameters(session.conversation.model, parameters).do_sample:  # type: ignore[arg-type]
        note("(the likeliest words are taken: it will be the same again; '/set temperature 0.7' draws)")
    session.print_answer(answer)


def reset(session: Session, rest: str) -> None:
    """`/reset`."""
    session.conversation.reset()
    kept = " but the system message" if session.conversation.system is not None else ""
    note(f"everything{kept} is forgotten")


def drop(session: Session, rest: str) -> None:
    """`/drop [N]`."""
    if rest and (not rest.isdecimal() or int(rest) < 1):
        raise ParameterError(f"/drop {rest}: a number of turns is expected")
    dropped = session.conversation.drop(int(rest or 1))
    note(f"{dropped} {'turn is' if dropped == 1 else 'turns are'} forgotten")


def system(session: Session, rest: str) -> None:
    """`/system [TEXT]`."""
    conversation = session.conversation
    if rest:
        before, conversation.system = conversation.system, None if rest == "off" else rest
        try:
            conversation.render([*conversation.messages, {"role": "user", "content": "?"}])
        except ValueError:  # some templates have no system message
            conversation.system = before
            raise
    note(
        f"system: {conversation.system}" if conversation.system is not None else "there is no system message"
    )


def save(session: Session, rest: str) -> None:
    """`/save FILE`."""
    file = file_named(rest, "/save")
    session.conversation.save(file)
    note(f"saved {len(session.conversation.messages)} messages to {file}")


def load(session: Session, rest: str) -> None:
    """`/load FILE`."""
    file = file_named(rest, "/load")
    session.conversation = type(session.conversation).load(session.conversation.model, file)
    session.answer = None
    note(f"{len(session.conversation.messages)} messages from {file}")


def file_named(rest: str, command: str) -> Path:
    """The file of a command. Raises ParameterError where none is named."""
    if not rest:
        raise ParameterError(f"{command} FILE: a file is expected")
    return Path(rest).expanduser()


def set_parameter(session: Session, rest: str) -> None:
    """`/set [NAME VALUE]`."""
    from tinylm.chat import chat_parameters

    if rest:
        name, _, text = rest.replace("=", " ").partition(" ")
        if not text.strip():
            raise ParameterError(f"/set {name}: a value is expected; null for the model's own")
        try:
            value = json.loads(text)
        except ValueError:
            value = text.strip()
        changed = {**session.parameters, name.replace("-", "_"): value}
        chat_parameters(session.conversation.model, changed)  # type: ignore[arg-type]
        session.parameters = {name: value for name, value in changed.items() if value is not None}
    shown = ", ".join(f"{name} {value}" for name, value in sorted(session.parameters.items()))
    note(shown or "the model's own parameters")


def stats(session: Session, rest: str) -> None:
    """`/stats`."""
    conversation = session.conversation
    used, context = conversation.used_tokens, session.context
    note(f"model       {session.name}, {conversation.model.engine.threads} threads")
    note(f"context     {used:,} of {context:,} tokens ({100 * used / context:.0f} %)")
    note(f"messages    {len(conversation.messages)}")
    if session.answer is None:
        return
    completion, reused = session.answer.completion, session.answer.reused_tokens
    times = completion.timings
    read = times.prompt_tokens - reused
    note(
        f"last prompt {times.prompt_tokens:,} tokens, {reused:,} of them read before, the other {read:,} in "
        f"{times.prefill_seconds:.2f} s"
    )
    note(
        f"last answer {times.generated_tokens:,} tokens, {times.tokens_per_second:.1f} tokens/s, "
        f"{completion.finish_reason}" + (f", seed {completion.seed}" if completion.seed is not None else "")
    )


def show(session: Session, rest: str) -> None:
    """`/show`."""
    note(session.conversation.render())


COMMANDS: dict[str, Callable[[Session, str], None]] = {
    "help": show_help,
    "retry": retry,
    "reset": reset,
    "drop": drop,
    "system": system,
    "save": save,
    "load": load,
    "set": set_parameter,
    "stats": stats,
    "show": show,
}
