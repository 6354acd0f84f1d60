"""Messages -> the text that a chat model reads, by the Jinja template that comes with the model.

The text is that of transformers' `apply_chat_template`, whose conventions these are: what a template
is given, what it may call, and the form of the messages (a list of dicts with `role` and `content`).
A model without a template has none: no form of chat is invented for it.

Needs the extra `chat` (jinja2), which is imported when a template is rendered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tinylm.errors import ChatTemplateError, MissingExtraError

Template = str | Mapping[str, str] | Sequence[Mapping[str, str]]
Message = Mapping[str, Any]

# A mark put at the end of the message to be continued; what the template writes from it on is cut off.
CONTINUE_MARK = "CONTINUE_FINAL_MESSAGE_TAG "
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
DEEPEST_INPUT = 60
LARGEST_INTEGER = 1 << 1024


def render(
    template: Template | None,
    messages: Sequence[Message],
    add_generation_prompt: bool = False,
    continue_final_message: bool | str = False,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    bos_token: str | None = None,
    eos_token: str | None = None,
    template_name: str | None = None,
    **variables: Any,
) -> str:
    """Renders messages as the text that the model reads.

    `template` is the model's: one template, or several by name, of which `template_name` chooses; else
    `tool_use` is taken where there are tools, and `default`. `add_generation_prompt` adds the opening of
    an answer; `continue_final_message` leaves the last message open for the model to go on with it (as a
    string it names the field, such as "reasoning_content"). `tools` are JSON schemas, `documents` dicts;
    `variables` go to the template as they are (`enable_thinking=False`, further special tokens, ...).

    Raises `ChatTemplateError` for a template that is missing, wrong, refuses the messages, or does what
    templates may not: reach into Python, run for more than a second, print more than 2,000,000
    characters. Raises `MissingExtraError` without jinja2.

    >>> render("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
    ...        [{"role": "user", "content": "Hi"}])
    '<user>Hi'
    """
    source = choose_template(template, template_name, with_tools=tools is not None)
    conversation = check_messages(messages)
    if continue_final_message and add_generation_prompt:
        raise ChatTemplateError(
            "continue_final_message and add_generation_prompt exclude each other: the first goes on with "
            "the last message, the second begins a new one"
        )
    special = {"bos_token": bos_token, "eos_token": eos_token}
    given = {
        **{name: token for name, token in special.items() if token is not None},
        **plain(variables, "a template variable"),
        "messages": conversation,
        "tools": check_dicts(tools, "tools", "a JSON schema"),
        "documents": check_dicts(documents, "documents", "a dict such as {'title': ..., 'text': ...}"),
        "add_generation_prompt": add_generation_prompt,
    }
    if not continue_final_message:
        return run(source, given)
    field = continue_final_message if isinstance(continue_final_message, str) else "content"
    final = mark_final_message(conversation, field, source)
    return cut_at_mark(run(source, given), final)


def choose_template(template: Template | None, name: str | None = None, with_tools: bool = False) -> str:
    """The one template of a model's to use: by name, or `tool_use` for tools, or `default`."""
    if template is None or (not isinstance(template, str) and not template):
        raise ChatTemplateError(
            "this model has no chat template: its folder has neither a chat_template.jinja nor a "
            "chat_template in tokenizer_config.json, so the form of its conversations is not known "
            "(it may not be a chat model; `tinylm generate` continues text)"
        )
    if isinstance(template, str):
        if name not in (None, "default"):
            raise ChatTemplateError(f"there is no chat template {name!r}: this model has a single one")
        return template
    if isinstance(template, Mapping):
        named = {str(key): value for key, value in template.items()}
    else:
        try:
            named = {entry["name"]: entry["template"] for entry in template}
        except (TypeError, KeyError):
            form = "{'name': ..., 'template': ...}"
            raise ChatTemplateError(f"a list of chat templates has entries {form}") from None
    wanted = [name] if name else ["tool_use", "default"] if with_tools else ["default"]
    for candidate in wanted:
        if isinstance(named.get(candidate), str):
            return str(named[candidate])
    raise ChatTemplateError(
        f"there is no chat template {wanted[-1]!r}; this model has {', '.join(map(repr, sorted(named)))}"
    )


def check_messages(messages: Any) -> list[dict[str, Any]]:
    """The messages as the template will see them: plain, without empty (None) fields."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        found = type(messages).__name__
        raise ChatTemplateError(f"messages are a list of {{'role': ..., 'content': ...}}, not a {found}")
    if not messages:
        raise ChatTemplateError("there are no messages: a conversation has at least one")
    conversation = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            found = type(message).__name__
            raise ChatTemplateError(f"messages[{index}] is a {found}, not a dict with 'role' and 'content'")
        fields = {name: value for name, value in message.items() if value is not None}
        role, content = fields.get("role"), fields.get("content")
        if not isinstance(role, str):
            raise ChatTemplateError(f"messages[{index}] has no 'role' such as 'user': {brief(message)}")
        if isinstance(content, (list, tuple)):
            for part_index, part in enumerate(content):
                if not isinstance(part, (str, Mapping)):
                    where = f"messages[{index}]['content'][{part_index}]"
                    raise ChatTemplateError(f"{where} is a {type(part).__name__}, not a dict with a 'type'")
        elif content is not None and not isinstance(content, (str, Mapping)):
            found = type(content).__name__
            raise ChatTemplateError(f"messages[{index}]['content'] is a {found}, not a string or parts")
        elif content is None and len(fields) == 1:
            raise ChatTemplateError(f"messages[{index}] has no 'content': {brief(message)}")
        fields = plain(fields, f"messages[{index}]")
        reasoning = next((fields[name] for name in REASONING_FIELDS if name in fields), None)
        if reasoning is not None:
            # The three names for one thing, each of which some template reads.
            fields = {"thinking": reasoning, **fields, "reasoning_content": reasoning}
        conversation.append(fields)
    return conversation


def check_dicts(values: Any, name: str, form: str) -> list[dict[str, Any]] | None:
    """Tools or documents as the template will see them."""
    if values is None:
        return None
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Sequence):
        raise ChatTemplateError(f"{name} are a list, not a {type(values).__name__}")
    for index, value in enumerate(values):
        if not isinstance(value, Mapping):
            raise ChatTemplateError(f"{name}[{index}] is a {type(value).__name__}, not {form}")
    checked: list[dict[str, Any]] = plain(list(values), name)
    return checked


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """A copy of plain strings, numbers, lists and dicts only: a template meets no methods of other things."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        if abs(value) > LARGEST_INTEGER:
            raise ChatTemplateError(f"{where} holds a number beyond 1,024 bits")
        return int(value)
    if isinstance(value, float):
        return float(value)
    if depth > DEEPEST_INPUT:
        raise ChatTemplateError(f"{where} is nested more than {DEEPEST_INPUT} deep")
    if isinstance(value, Mapping):
        return {plain(key, where, depth + 1): plain(item, where, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item, where, depth + 1) for item in value]
    if isinstance(value, tuple):
        return tuple(plain(item, where, depth + 1) for item in value)
    raise ChatTemplateError(
        f"{where} holds a {type(value).__name__}; templates take strings, numbers, lists and dicts"
    )


def brief(value: Any) -> str:
    """A value in an error message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def mark_final_message(conversation: list[dict[str, Any]], field: str, source: str) -> str:
    """Marks the end of the message to be continued; returns its text."""
    message = conversation[-1]
    final = message.get(field)
    if final is None:
        raise ChatTemplateError(f"the last message has no {field!r} to continue: {brief(message)}")
    fields = [field]
    if field in REASONING_FIELDS:
        fields = [name for name in REASONING_FIELDS if message.get(name) == final]
    if not any(name in source for name in fields):
        raise ChatTemplateError(f"{field!r} cannot be continued: this model's chat template does not use it")
    if isinstance(final, str):
        for name in fields:
            message[name] = final + CONTINUE_MARK
        return final
    for part in reversed(final):
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            text: str = part["text"]
            part["text"] = text + CONTINUE_MARK
            return text
    raise ChatTemplateError("the last message has no text to continue")


def cut_at_mark(rendered: str, final: str) -> str:
    """The text up to the end of the message to be continued."""
    mark = CONTINUE_MARK.strip()
    place = rendered.rfind(mark)
    if place < 0 or final.strip() not in rendered:
        raise ChatTemplateError(
            "the last message cannot be continued: this model's chat template leaves out parts of it"
        )
    if rendered.startswith(CONTINUE_MARK, place):
        return rendered[:place]
    # The template trimmed the message, so the space before the mark is not the message's either.
    return rendered[:place].rstrip()


def run(source: str, variables: dict[str, Any]) -> str:
    """Runs a template in the sandbox; everything that goes wrong there is told as the template's."""
    try:
        import jinja2
    except ImportError:
        raise MissingExtraError("chat", "a chat template") from None
    from tinylm.chat_template.budget import LimitError
    from tinylm.chat_template.environment import run_template
    from tinylm.chat_template.functions import MessagesRefused

    try:
        return run_template(source, variables)
    except MessagesRefused as error:
        problem = f"the model's chat template refuses these messages: {error}"
    except LimitError as error:
        problem = f"the chat template was stopped{line_of(error)}: {error}"
    except jinja2.TemplateSyntaxError as error:
        problem = f"the chat template is not valid, line {error.lineno}: {error.message}"
    except (RecursionError, MemoryError, OverflowError):
        problem = "the chat template was stopped: it nests too deep or grows too large"
    except Exception as error:  # whatever a template does, it is the template's fault
        problem = f"the chat template fails{line_of(error)}: {error or type(error).__name__}"
    raise ChatTemplateError(problem)


def line_of(error: BaseException) -> str:
    """` at line 12`, the line of the template where an exception arose."""
    place = ""
    trace = error.__traceback__
    while trace is not None:
        template = trace.tb_frame.f_globals.get("__jinja_template__")
        if template is not None:
            place = f" at line {template.get_corresponding_lineno(trace.tb_lineno)}"
        trace = trace.tb_next
    return place
