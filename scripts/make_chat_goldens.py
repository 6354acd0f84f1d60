"""Makes tests/fixtures/chat_templates/goldens.json: what transformers renders of the chat templates there.

Every template with every conversation of cases.json, and every template of expressions.json with one
set of messages and variables; null where transformers raises an error. Needs transformers.

    python scripts/make_chat_goldens.py
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any
from unittest import mock

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "chat_templates"
MOMENT = datetime.datetime(2025, 3, 9, 14, 5, 6)


class FixedTime(datetime.datetime):
    """A clock that stands."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        """The pinned moment."""
        return MOMENT


def transformers_render(template: str, case: dict[str, Any]) -> str | None:
    """The text of transformers' own renderer, through a tokenizer with the case's special tokens."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import chat_template_utils

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), bos_token="<s>", eos_token="</s>"
    )
    options = {name: value for name, value in case.items() if name not in ("name", "messages", "variables")}
    options.update(case.get("variables", {}))
    with mock.patch.object(chat_template_utils, "datetime", FixedTime):
        try:
            text: str = tokenizer.apply_chat_template(
                case["messages"], chat_template=template, tokenize=False, **options
            )
        except Exception:
            return None
    return text


def main() -> None:
    """Writes the goldens."""
    cases = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))
    expressions = json.loads((FOLDER / "expressions.json").read_text(encoding="utf-8"))
    goldens: dict[str, Any] = {"templates": {}, "expressions": {}}
    for path in sorted(FOLDER.glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        goldens["templates"][path.stem] = {
            case["name"]: transformers_render(template, case) for case in cases
        }
    for template in expressions["templates"]:
        goldens["expressions"][template] = transformers_render(template, expressions["case"])
    text = json.dumps(goldens, ensure_ascii=False, indent=1, sort_keys=True)
    (FOLDER / "goldens.json").write_text(text + "\n", encoding="utf-8", newline="\n")
    values = [text for texts in goldens["templates"].values() for text in texts.values()]
    print(
        f"{len(values)} renderings, {values.count(None)} refusals, {len(goldens['expressions'])} expressions"
    )


if __name__ == "__main__":
    main()
