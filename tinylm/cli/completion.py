"""`tinylm completion`: completion scripts for bash, zsh and fish, made from the commands' own parsers."""

from __future__ import annotations

import argparse

from tinylm.cli.parsing import Parser

MODELS = "$(tinylm list --names 2>/dev/null)"


def parser() -> Parser:
    """The words that the command takes."""
    it = Parser(
        "completion",
        "Print a script that teaches your shell to complete tinylm's commands, options and models.",
        [("tinylm completion bash", "")],
        notes="to have it in every new shell:\n"
        "  bash  echo 'eval \"$(tinylm completion bash)\"' >> ~/.bashrc\n"
        "  zsh   echo 'eval \"$(tinylm completion zsh)\"' >> ~/.zshrc    (below compinit)\n"
        "  fish  tinylm completion fish > ~/.config/fish/completions/tinylm.fish",
    )
    it.add_argument("shell", choices=["bash", "zsh", "fish"], help="the shell that reads the script")
    return it


def run(arguments: argparse.Namespace) -> int:
    """Print the script of one shell."""
    print({"bash": bash, "zsh": zsh, "fish": fish}[arguments.shell]())
    return 0


def options(of: argparse.ArgumentParser) -> list[argparse.Action]:
    """The options of a parser that are shown to people."""
    return [a for a in of._actions if a.option_strings and a.help != argparse.SUPPRESS]


def takes(action: argparse.Action) -> str:
    """What follows an option or stands for an argument: 'nothing', 'model', 'words', 'file' or 'text'."""
    if action.option_strings and action.nargs == 0:
        return "nothing"
    if isinstance(action, argparse.BooleanOptionalAction):
        return "nothing"
    if action.choices:
        return "words"
    return {"MODEL": "model", "FILE": "file", "FOLDER": "file"}.get(str(action.metavar), "text")


def arguments_of(of: argparse.ArgumentParser) -> list[argparse.Action]:
    """The positional arguments of a parser."""
    return [action for action in of._actions if not action.option_strings]


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Every command's parser, by the command's name."""
    from tinylm.cli import COMMANDS, command

    return {name: command(name).parser() for name in COMMANDS}


def bash() -> str:
    """A function for bash's `complete`."""
    cases = []
    for name, of in parsers().items():
        values = "".join(
            f"          {'|'.join(action.option_strings)}) {reply(action)}; return;;\n"
            for action in options(of)
            if takes(action) != "nothing"
        )
        words = " ".join(word for action in options(of) for word in action.option_strings)
        wanted = [reply(action) for action in arguments_of(of) if takes(action) != "text"]
        otherwise = wanted[0] if wanted else "COMPREPLY=()"
        cases.append(
            f"    {name})\n"
            f'      case "$previous" in\n{values}      esac\n'
            f'      if [[ $current == -* ]]; then COMPREPLY=($(compgen -W "{words}" -- "$current"));\n'
            f"      else {otherwise}; fi;;\n"
        )
    from tinylm.cli import COMMANDS

    return (
        "_tinylm() {\n"
        "  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}\n"
        "  COMPREPLY=()\n"
        "  if [[ $COMP_CWORD -eq 1 ]]; then\n"
        f'    COMPREPLY=($(compgen -W "{" ".join(COMMANDS)} --help --version" -- "$current")); return\n'
        "  fi\n"
        '  case "${COMP_WORDS[1]}" in\n' + "".join(cases) + "  esac\n}\n"
        "complete -F _tinylm tinylm"
    )


def reply(action: argparse.Action) -> str:
    """How bash fills COMPREPLY for what an option or argument takes."""
    kind = takes(action)
    if kind == "words":
        return f'COMPREPLY=($(compgen -W "{" ".join(map(str, action.choices or []))}" -- "$current"))'
    if kind == "model":
        return f'COMPREPLY=($(compgen -W "{MODELS}" -- "$current") $(compgen -d -- "$current"))'
    return 'COMPREPLY=($(compgen -f -- "$current"))' if kind == "file" else "COMPREPLY=()"


def quote(text: str) -> str:
    """A shell word in single quotes, for zsh and fish."""
    return "'" + text.replace("'", "'\\''") + "'"


def zsh() -> str:
    """A function for zsh's `compdef`."""
    from tinylm.cli import COMMANDS

    what = {
        "model": 'model:{ compadd -- ${(f)"$(tinylm list --names 2>/dev/null)"}; _files -/ }',
        "file": "file:_files",
        "text": "text: ",
    }
    cases = []
    for name, of in parsers().items():
        specifications = []
        for action in options(of):
            kind = takes(action)
            text = (
                (action.help or "")
                .replace("[", "(")
                .replace("]", ")")
                .replace("\\", "\\\\")
                .replace(":", "\\:")
            )
            end = ""
            if kind == "words":
                end = f":{action.dest}:({' '.join(map(str, action.choices or []))})"
            elif kind != "nothing":
                end = ":" + what[kind]
            # The forms of an option exclude each other, unless it may be given several times.
            once = f"({' '.join(action.option_strings)})"
            repeated = "*" if isinstance(action, argparse._AppendAction) else once
            specifications += [quote(f"{repeated}{word}[{text}]{end}") for word in action.option_strings]
        for action in arguments_of(of):
            kind = takes(action)
            if kind == "text":
                continue  # an argument that cannot be completed keeps zsh from inserting an only match
            listed = f"{action.dest}:({' '.join(map(str, action.choices or []))})"
            specifications.append(quote("*:" + (listed if kind == "words" else what[kind])))
        lines = " \\\n        ".join(specifications)
        cases.append(f"    {name})\n      _arguments -s \\\n        {lines};;\n")
    described = "\n".join(f"    {quote(f'{name}:{purpose}')}" for name, (_, purpose) in COMMANDS.items())
    return (
        "#compdef tinylm\n"
        "_tinylm() {\n"
        f"  local -a commands=(\n{described}\n  )\n"
        "  if (( CURRENT == 2 )); then _describe command commands; return; fi\n"
        "  local name=$words[2]\n"
        "  shift words; (( CURRENT-- ))\n"
        "  case $name in\n" + "".join(cases) + "  esac\n}\n"
        "compdef _tinylm tinylm"
    )


def fish() -> str:
    """Lines of fish's `complete`."""
    from tinylm.cli import COMMANDS

    lines = ["complete -c tinylm -f"]
    for name, (_, purpose) in COMMANDS.items():
        lines.append(f"complete -c tinylm -n __fish_use_subcommand -a {name} -d {quote(purpose)}")
    for name, of in parsers().items():
        start = f"complete -c tinylm -n '__fish_seen_subcommand_from {name}'"
        for action in [*options(of), *arguments_of(of)]:
            kind = takes(action)
            words = [
                f"-l {word[2:]}" if word.startswith("--") else f"-s {word[1:]}"
                for word in action.option_strings
            ]
            follows = {
                "nothing": "",
                "model": "-xa '(tinylm list --names 2>/dev/null)'",
                "file": "-rF",
                "text": "-x",
            }
            end = follows.get(kind, f"-xa {quote(' '.join(map(str, action.choices or [])))}")
            if not action.option_strings:
                if kind == "text":
                    continue
                end = end.replace("-xa", "-a").replace("-rF", "-F")
                lines.append(f"{start} {end}")
                continue
            lines.append(" ".join([start, *words, end, f"-d {quote(action.help or '')}"]).replace("  ", " "))
    return "\n".join(lines)
