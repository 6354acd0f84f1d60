"""tinylm: small language models on a CPU, in Python you can read.

>>> import tinylm
>>> lm = tinylm.load()  # the bundled story model; or a folder, or a name from `tinylm list`
>>> print(lm.generate("Once upon a time", max_new_tokens=5))
, there was a little
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinylm.completion import Completion, Timings, TokenLogprob
    from tinylm.conversation import Conversation
    from tinylm.generate import Stream
    from tinylm.language_model import LanguageModel, load
    from tinylm.parameters import GenerationParameters
    from tinylm.tokenizer import Tokenizer

__version__ = "0.1.0"
__all__ = [
    "Completion",
    "Conversation",
    "GenerationParameters",
    "LanguageModel",
    "Stream",
    "Timings",
    "TokenLogprob",
    "Tokenizer",
    "__version__",
    "load",
]

# Imported when they are first asked for: `tinylm --help` and the tokenizer do without NumPy and Numba.
MODULES = {
    "Completion": "tinylm.completion",
    "Conversation": "tinylm.conversation",
    "GenerationParameters": "tinylm.parameters",
    "LanguageModel": "tinylm.language_model",
    "Stream": "tinylm.generate",
    "Timings": "tinylm.completion",
    "TokenLogprob": "tinylm.completion",
    "Tokenizer": "tinylm.tokenizer",
    "load": "tinylm.language_model",
}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module 'tinylm' has no attribute {name!r}")
    value = getattr(importlib.import_module(MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})
