"""`tinylm generate`: write on from a prompt."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from tinylm.cli import parsing
from tinylm.cli.open_model import add_pull_options, locate, open_model
from tinylm.cli.prompt import add_prompt_arguments, read_prompt, unescape
from tinylm.cli.terminal import compile_notice, note, prompt_progress
from tinylm.errors import ParameterError

if TYPE_CHECKING:
    from tinylm.chat import Answer
    from tinylm.completion import Completion
    from tinylm.generate import Stream
    from tinylm.language_model import LanguageModel


def parser() -> parsing.Parser:
    """The words that the command takes."""
    it = parsing.Parser(
        "generate",
        "Write on from a prompt. The new text goes to standard output, everything else to standard error.",
        [
            ('tinylm generate "Once upon a time"', "the bundled story model"),
            ('tinylm generate "Once upon a time" -n 200 --temperature 0.8 --seed 7', ""),
            ("tinylm generate --model smollm2-135m-instruct --prompt-file letter.txt", ""),
            (
                'tinylm generate --chat "What is a comet?" --model smollm2-135m-instruct',
                "a question, answered",
            ),
            ("echo 'Dear Sir,' | tinylm generate - --echo --stats", "prompt from a pipe, with figures"),
            (r"tinylm generate -e 'Q: Why?\nA:' --stop '\n'", "a line end in the prompt and as an end"),
            (
                "tinylm generate --prompt-file contract.txt --prompt-lookup 10",
                "faster where a text is quoted",
            ),
            ('tinylm generate "Under this" -r 3 --temperature 0.5 --json', "three answers, for machines"),
        ],
        notes="exit codes: 0 fine, 1 failed, 2 misused, 130 interrupted (what was written stays)",
    )
    add_prompt_arguments(it)
    it.add_argument(
        "--chat", action="store_true",
        help="the prompt is a message to a chat model, put into the form of the model's chat template",
    )  # fmt: skip
    it.add_argument("--system", metavar="TEXT", help="with --chat: tell the model how to behave")
    parsing.add_model_options(it)
    add_pull_options(it)
    parsing.add_sampling_options(it)
    group = it.add_argument_group("what is shown")
    group.add_argument(
        "--stream", action=argparse.BooleanOptionalAction, default=True,
        help="show each word when it is written, or all at the end",
    )  # fmt: skip
    group.add_argument(
        "--show-prompt", action="store_true", help="print exactly what the model reads, on standard error"
    )
    group.add_argument("--echo", action="store_true", help="print the prompt before the new text")
    group.add_argument(
        "--json", action="store_true", help="print one JSON object: text, ids, timings, seed and more"
    )
    group.add_argument(
        "--logprobs",
        type=int,
        metavar="N",
        help="report each token's log-probability and the N likeliest (0: its own)",
    )
    group.add_argument("--stats", action="store_true", help="report speed, and its share of the memory's")
    group.add_argument(
        "-q", "--quiet", action="store_true", help="no notes: only errors and what was asked for"
    )
    return it


def run(arguments: argparse.Namespace) -> int:
    """Read the prompt, open the model, write."""
    prompt = read_prompt(arguments)
    if arguments.system is not None and not arguments.chat:
        raise ParameterError("--system is for chat models: give --chat too")
    parameters = parsing.sampling_parameters(arguments)
    if arguments.escapes and "stop" in parameters:
        parameters["stop"] = [unescape(text) for text in parameters["stop"]]
    if arguments.logprobs is not None:
        parameters |= {"logprobs": True, "top_logprobs": arguments.logprobs}
    if not arguments.quiet:
        parameters["progress"] = prompt_progress
    folder = locate(arguments)
    with compile_notice(arguments.quiet):
        model, load_seconds = open_model(folder, arguments)
        if arguments.show_prompt:
            note(what_is_read(model, prompt, arguments))
        if arguments.chat or parameters.get("num_return_sequences", 1) == 1:
            completions = [write_one(model, prompt, parameters, arguments)]
        else:
            completions = write_several(model, prompt, parameters, arguments)
    report(model, prompt, completions, load_seconds, arguments)
    return 0


def write_one(
    model: LanguageModel, prompt: str, parameters: dict[str, Any], arguments: argparse.Namespace
) -> Completion:
    """Write an answer to standard output, as it comes unless asked otherwise, and a line end."""
    # A mistake in the parameters is told here, before kernels are compiled.
    stream: Stream | Answer = (
        model.stream_chat(conversation(prompt, arguments), **parameters)
        if arguments.chat
        else model.stream(prompt, **parameters)
    )
    model.engine.compile()
    if arguments.json or not arguments.stream:
        text = "".join(stream)
        if not arguments.json:
            print((prompt if arguments.echo else "") + text)
        return stream.completion
    sys.stdout.write(prompt if arguments.echo else "")
    for piece in stream:
        sys.stdout.write(piece)
        sys.stdout.flush()
    print(flush=True)
    return stream.completion


def conversation(prompt: str, arguments: argparse.Namespace) -> list[dict[str, str]]:
    """The messages of `--chat`."""
    system = [] if arguments.system is None else [{"role": "system", "content": arguments.system}]
    return [*system, {"role": "user", "content": prompt}]


def what_is_read(model: LanguageModel, prompt: str, arguments: argparse.Namespace) -> str:
    """The text that the model reads, with its special tokens."""
    if arguments.chat:
        messages = conversation(prompt, arguments)
        return model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return model.tokenizer.decode(model.prompt_ids(prompt), skip_special_tokens=False)


def write_several(
    model: LanguageModel, prompt: str, parameters: dict[str, Any], arguments: argparse.Namespace
) -> list[Completion]:
    """Write several answers, each with a line end, when all are complete; numbered on standard error."""
    completions: list[Completion] = model.generate_batch([prompt], **parameters)[0]
    for number, completion in enumerate(completions, 1):
        if arguments.json:
            continue
        if not arguments.quiet:
            note(f"--- {number} of {len(completions)}")
        print((prompt if arguments.echo else "") + completion.text, flush=True)
    return completions


def report(
    model: LanguageModel,
    prompt: str,
    completions: list[Completion],
    load_seconds: float,
    arguments: argparse.Namespace,
) -> None:
    """Print what was asked for beside the text: the JSON object, log-probabilities, figures, the seed."""
    from tinylm.cli import reports

    if arguments.json:
        facts = {
            "model": arguments.model,
            "prompt": prompt,
            "dtype": arguments.dtype,
            "load_seconds": load_seconds,
        }
        print(reports.as_json(model, completions, facts))
    elif arguments.logprobs is not None:
        note(reports.logprob_table(model, completions))
    if arguments.stats:
        note(reports.figures(model, completions, load_seconds))
    if (
        not arguments.quiet
        and not arguments.json
        and completions[0].seed is not None
        and arguments.seed is None
    ):
        note(f"seed {completions[0].seed}")
