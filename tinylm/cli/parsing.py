"""The words after a command: one parser class, and the options that several commands share."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, NoReturn

BUNDLED_MODEL = "stories260k"
QUANTIZED = ("int8", "int4")
FORMATS = ("auto", "float32", "bfloat16", *QUANTIZED)
KV_FORMATS = ("auto", "float32", "bfloat16", "float16", "int8")


class Parser(argparse.ArgumentParser):
    """Names the mistake in one line instead of printing every option, and shows examples in its help."""

    def __init__(self, name: str, description: str, examples: list[tuple[str, str]], notes: str = "") -> None:
        self.examples = examples
        width = max((len(words) for words, _ in examples if len(words) < 64), default=0)
        lines = [f"  {words:{width}}  {meaning}".rstrip() for words, meaning in examples]
        shown = "examples:\n" + "\n".join(lines) if examples else ""
        super().__init__(
            prog=f"tinylm {name}",
            description=description,
            epilog="\n\n".join(part for part in (notes, shown) if part),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(
            "--debug", action="store_true", help="show where an error came from (or TINYLM_DEBUG=1)"
        )

    def error(self, message: str) -> NoReturn:
        """End with exit code 2 and one line that says what was wrong."""
        print(f"{self.prog}: {message}\ntry '{self.prog} --help'", file=sys.stderr)
        raise SystemExit(2)


def add_model_options(parser: argparse.ArgumentParser, default: str = BUNDLED_MODEL) -> None:
    """`--model`, `--dtype`, `--kv-dtype`, `--threads`, `--offline`: for every command that opens a model."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "-m", "--model", default=os.environ.get("TINYLM_MODEL") or default, metavar="MODEL",
        help="a name that 'tinylm list' shows, a folder, or OWNER/NAME of the hub"
        f" (default: $TINYLM_MODEL, else {default})",
    )  # fmt: skip
    group.add_argument(
        "--dtype", choices=FORMATS, default="auto", help="how weights are held (default: auto, as stored)"
    )
    group.add_argument(
        "--kv-dtype", choices=KV_FORMATS, default="auto",
        help="how keys and values of a text are held (default: auto, int8 beside int8 and int4 weights,"
        " else float32)",
    )  # fmt: skip
    group.add_argument("--threads", type=int, metavar="N", help="threads (default: one a performance core)")
    group.add_argument("--offline", action="store_true", help="never touch the network")
    add_layout_options(group)


def add_layout_options(group: argparse._ActionsContainer) -> None:
    """`--architecture`, `--tensor-names`: for folders that do not say what they are."""
    group.add_argument(
        "--architecture", metavar="NAME", help="the layout of a folder whose config.json names an unknown one"
    )
    group.add_argument(
        "--tensor-names", metavar="FILE",
        help="a JSON object from the layout's names of tensors to the folder's, {} for a layer's number",
    )  # fmt: skip


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """The parameters of generation under transformers' names; what is not given is left to the model."""
    group = parser.add_argument_group("how long")
    group.add_argument(
        "-n", "--max-new-tokens", type=int, metavar="N", help="stop after so many tokens (default: 128)"
    )
    group.add_argument("--min-new-tokens", type=int, metavar="N", help="do not end before so many")
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="stop before this text; may be given several times"
    )
    group.add_argument("--ignore-eos", action="store_true", help="go on past the token that ends a text")
    group.add_argument(
        "--prompt-lookup", type=int, metavar="N", dest="prompt_lookup_num_tokens",
        help="guess up to N tokens at a time from the prompt and the text so far; 10 suits texts that quote it",
    )  # fmt: skip
    group = parser.add_argument_group(
        "how to choose",
        "What is not given is taken from the model's generation_config.json. Without any of these the likeliest "
        "token is taken each time; one of --temperature, --top-k, --top-p, --min-p, --typical-p, --seed draws.",
    )
    group.add_argument(
        "--do-sample", action=argparse.BooleanOptionalAction, help="draw at random, or take the likeliest"
    )
    group.add_argument(
        "-t", "--temperature", type=float, metavar="X", help="below 1 bolder choices are rarer"
    )
    group.add_argument("--top-k", type=int, metavar="N", help="only among the N likeliest (0: all)")
    group.add_argument("--top-p", type=float, metavar="P", help="only among the likeliest that make up P")
    group.add_argument("--min-p", type=float, metavar="P", help="only those at least P times the likeliest")
    group.add_argument("--typical-p", type=float, metavar="P", help="only the most typical that make up P")
    group.add_argument("--repetition-penalty", type=float, metavar="X", help="above 1 repeats less")
    group.add_argument("--frequency-penalty", type=float, metavar="X", help="subtracted for each earlier use")
    group.add_argument(
        "--presence-penalty", type=float, metavar="X", help="subtracted once for any earlier use"
    )
    group.add_argument("--no-repeat-ngram-size", type=int, metavar="N", help="never repeat N tokens in a row")
    group.add_argument(
        "--logit-bias", type=token_and_bias, action="append", metavar="ID=X",
        help="add X to a token's logit (-inf: never); may be given several times",
    )  # fmt: skip
    group.add_argument("-s", "--seed", type=int, metavar="N", help="the same seed gives the same text")
    group.add_argument(
        "-r", "--num-return-sequences", type=int, metavar="N", help="so many answers to the same prompt"
    )


SAMPLING = (
    "max_new_tokens", "min_new_tokens", "stop", "do_sample", "temperature", "top_k", "top_p",
    "min_p", "typical_p", "repetition_penalty", "frequency_penalty", "presence_penalty",
    "no_repeat_ngram_size", "logit_bias", "seed", "num_return_sequences",
    "prompt_lookup_num_tokens",
)  # fmt: skip


def sampling_parameters(arguments: argparse.Namespace) -> dict[str, Any]:
    """The parameters that were given, under the library's names."""
    given = {name: getattr(arguments, name) for name in SAMPLING if getattr(arguments, name) is not None}
    if "logit_bias" in given:
        given["logit_bias"] = dict(given["logit_bias"])
    if arguments.ignore_eos:
        given["eos_token_ids"] = []
    return given


def token_and_bias(text: str) -> tuple[int, float]:
    """`'13=-1.5'` -> `(13, -1.5)`."""
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form ID=NUMBER") from None
