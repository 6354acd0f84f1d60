"""The errors a user can act on. Each message names what is wrong, what was found, what is possible."""


class TinylmError(ValueError):
    """The root of them all: the command line prints its message alone, without a traceback."""


class CheckpointError(TinylmError):
    """A model folder that cannot be read, or that does not hold what its config says."""


class LayoutError(CheckpointError):
    """A tensor that is missing, extra or misshapen, by the architecture and config that asked for it."""


class TokenizerError(TinylmError):
    """A tokenizer.json that is malformed, or that uses a part which is not supported."""


class ParameterError(TinylmError):
    """A parameter of generation that makes no sense, such as a temperature of -1."""


class ChatTemplateError(TinylmError):
    """A chat template that is missing or wrong, refuses the messages, or does what templates may not."""


class ContextError(TinylmError):
    """A prompt and an answer that do not fit into the model's context."""


class MissingModelError(TinylmError):
    """A model that was asked for by name and is not here."""


class SourceError(TinylmError):
    """A model that could not be fetched or written: no network, a full disk, a hash that differs."""


class MissingExtraError(TinylmError):
    """An optional dependency that is not installed; the message says how to install it."""

    def __init__(self, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs an optional part: pip install 'tinylm[{extra}]'")
