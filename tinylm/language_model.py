"""A model with its tokenizer: what `tinylm.load` gives."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from tinylm.chat import Answer, ChatOptions, PrefixMemory, answer_messages
from tinylm.completion import Completion
from tinylm.continuation import Continuation, Progress, Request
from tinylm.errors import ContextError, ParameterError
from tinylm.generate import Stream, continuations, write
from tinylm.generation_config import ignored_settings, resolve_parameters, stored_parameters
from tinylm.sampler import draw_seed

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from tinylm.engine import Engine
    from tinylm.logits_processors import Logits
    from tinylm.parameters import GenerationParameters, Parameters
    from tinylm.tokenizer import Tokenizer
    from tinylm.tokenizer.tokenizer import Messages
    from tinylm.trace import Hook, Trace

Text = str | Sequence[int]
"""A prompt: text, or the ids of its tokens."""


def load(
    model: str | PathLike[str] = "stories260k",
    *,
    dtype: str = "auto",
    kv_dtype: str = "auto",
    threads: int | None = None,
    architecture: str | None = None,
    tensor_names: Mapping[str, str] | str | PathLike[str] | None = None,
    offline: bool = False,
) -> LanguageModel:
    """Open a model: a folder, or a name that `tinylm list` shows; the bundled story model by default.

    `dtype` is the format of the weights in memory: "auto" as they are stored, or "float32", "bfloat16",
    "int8", "int4".
    `kv_dtype` is that of the keys and values of a text: "float32", "bfloat16", "float16" or "int8"; "auto" is
    int8 beside int8 and int4 weights, and float32 beside others.
    `threads` is by default the number of fast cores. `architecture` says which known layout a folder
    has whose config.json names an unknown one; `tensor_names`, for a folder that calls its tensors otherwise,
    leads from the names of that layout to the folder's (or is a JSON file that does), with `{}` for the
    number of a layer: `{"model.layers.{}.self_attn.q_norm.weight": "h.{}.q_ln.weight"}`. With `offline` no
    network is used.

    Raises `MissingModelError` for a name that is not here, `CheckpointError` and `TokenizerError` for a
    folder that cannot be read, `ParameterError` for an unknown dtype.
    """
    from tinylm.checkpoint import Checkpoint
    from tinylm.engine import Engine
    from tinylm.sources.catalog import resolve
    from tinylm.tensor_names import TensorNames
    from tinylm.tokenizer import Tokenizer

    checkpoint = Checkpoint(resolve(fspath(model), offline))
    tokenizer = Tokenizer.from_folder(checkpoint.folder)
    names = TensorNames.read(tensor_names)
    engine = Engine.load(
        checkpoint,
        dtype=dtype,
        kv_dtype=kv_dtype,
        threads=threads,
        architecture=architecture,
        tensor_names=names,
    )
    return LanguageModel(engine, tokenizer, checkpoint.config, checkpoint.generation_config)


class LanguageModel:
    """A model that writes: text or ids in, `Completion` out.

    `config` and `generation_config` are the model's files of that name; `tokenizer` and `engine` its two
    halves. Calls from several threads are safe: they queue for each step.

    The methods take the parameters of `GenerationParameters` by name, under the names of transformers.
    A parameter that is not given comes from generation_config.json, then from the defaults. Giving
    `temperature`, `top_k`, `top_p`, `min_p`, `typical_p` or `seed` asks for sampling unless
    `do_sample=False` says otherwise; with none of them and no `do_sample`, the file decides, and where
    it says nothing the likeliest token is taken. They raise `ParameterError` for values without a
    meaning, `ContextError` where the prompt and the answer that was asked for do not fit, and
    `TinylmError` for logits that are no numbers. Ctrl-C between two tokens leaves the model usable.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        config: Mapping[str, Any],
        generation_config: Mapping[str, Any] | None = None,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.config = dict(config)
        self.generation_config = dict(generation_config or {})
        self._read = PrefixMemory()
        stored_parameters(self.generation_config)
        if ignored := ignored_settings(self.generation_config):
            warnings.warn(
                f"generation_config.json: not supported, and ignored: {', '.join(ignored)}", stacklevel=2
            )

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text, by generation_config.json, config.json and the tokenizer together."""
        found: list[int] = []
        for source in (self.generation_config, self.config, {"eos_token_id": self.tokenizer.eos_token_id}):
            entry = source.get("eos_token_id")
            found += entry if isinstance(entry, list) else [] if entry is None else [entry]
        return tuple(dict.fromkeys(token for token in found if isinstance(token, int) and token >= 0))

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text: an empty prompt becomes this."""
        for entry in (
            self.generation_config.get("bos_token_id"),
            self.config.get("bos_token_id"),
            self.tokenizer.bos_token_id,
        ):
            if isinstance(entry, int) and 0 <= entry < self.engine.vocab_size:
                return entry
        return None

    def generate(
        self,
        prompt: Text,
        *,
        add_special_tokens: bool = True,
        skip_special_tokens: bool = True,
        progress: Progress | None = None,
        **parameters: Unpack[Parameters],
    ) -> Completion:
        """Write on from a prompt -> one completion; `str()` of it is its text, without the prompt.

        `add_special_tokens` says whether the tokenizer may put its own before the prompt's text;
        `skip_special_tokens` leaves them out of the answer's; `progress(done, total)` is called while a
        long prompt is read.
        """
        answer = self._single(prompt, add_special_tokens, skip_special_tokens, parameters)
        for _ in write(self.engine, [answer], progress=progress):
            pass
        return answer.completion()

    def stream(
        self,
        prompt: Text,
        *,
        add_special_tokens: bool = True,
        skip_special_tokens: bool = True,
        progress: Progress | None = None,
        **parameters: Unpack[Parameters],
    ) -> Stream:
        """Write on from a prompt -> an iterator of pieces of text, with `.completion`.

        Mistakes are raised here and not by the iterator.
        """
        answer = self._single(prompt, add_special_tokens, skip_special_tokens, parameters)
        return Stream(self.engine, answer, progress)

    def generate_batch(
        self,
        prompts: Iterable[Text],
        *,
        batch_size: int = 16,
        add_special_tokens: bool = True,
        skip_special_tokens: bool = True,
        progress: Progress | None = None,
        **parameters: Unpack[Parameters],
    ) -> list[list[Completion]]:
        """Write on from many prompts -> for each, in order, its `num_return_sequences` completions.

        At most `batch_size` are written at a time; they share each step's reading of the weights, and
        the answers to one prompt its reading. Each is what it would be alone: with a seed, the answers
        to a prompt depend on that and on the prompt; without one, a seed is drawn for each prompt.
        """
        if isinstance(prompts, str):
            raise ParameterError("prompts is one string: give a list of prompts, or call generate")
        if isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or batch_size < 1:
            raise ParameterError(f"batch_size is {batch_size!r}: it must be a whole number, 1 or more")
        resolved = self._resolve(parameters)
        answers = [
            continuations(
                self._request(prompt, resolved, add_special_tokens, skip_special_tokens),
                self.tokenizer,
                self.engine.vocab_size,
            )
            for prompt in prompts
        ]
        together = [answer for group in answers for answer in group]
        for _ in write(self.engine, together, int(batch_size), progress):
            pass
        return [[answer.completion() for answer in group] for group in answers]

    def chat(self, messages: Messages, **options: Unpack[ChatOptions]) -> Completion:
        """Answer a conversation -> the completion; `str()` of it is the answer's text.

        `messages` are dicts with `role` and `content`, put into the form of the model's chat template with
        `tools`, `documents` and `variables`, as `tinylm.chat_template.render` says. With
        `continue_final_message` the model goes on with the last message instead. The other parameters are
        those of `generate`; without `max_new_tokens` an answer may have 1,024 tokens.

        Of a conversation that goes on from the one before, only what is new is read. Raises
        `ChatTemplateError` for a model without a template and for messages that it refuses. Needs the
        extra `chat`.

        >>> str(lm.chat([{"role": "user", "content": "What is the capital of France?"}]))
        'The capital of France is Paris.'
        """
        told = self.stream_chat(messages, **options)
        for _ in told:
            pass
        return told.completion

    def stream_chat(self, messages: Messages, **options: Unpack[ChatOptions]) -> Answer:
        """Answer a conversation -> an iterator of pieces of text, with `.completion`."""
        return answer_messages(self, self._read, messages, options)

    def logits(self, prompt: Text, *, add_special_tokens: bool = True) -> Logits:
        """Text or ids (T,) -> logits (T, V) float32: after each token, the next one's."""
        ids = self.prompt_ids(prompt, add_special_tokens)
        if len(ids) > self.engine.context_length:
            raise ContextError(
                f"the text has {len(ids):,} tokens and the model's context holds {self.engine.context_length:,}"
            )
        return self.engine.logits(ids)

    def trace(
        self, prompt: Text, hooks: Mapping[str, Hook] | None = None, *, add_special_tokens: bool = True
    ) -> Trace:
        """Every intermediate value of a text by its name; see `tinylm.trace.trace` and docs/seeing-inside.md.

        `hooks` maps names to functions that get a value and change it, or return what takes its place.
        """
        from tinylm.trace import trace

        ids = self.prompt_ids(prompt, add_special_tokens)
        tokens = [self.tokenizer.id_to_token(token) or f"<{token}>" for token in ids]
        return trace(self.engine, ids, tokens, hooks)

    def prompt_ids(self, prompt: Text, add_special_tokens: bool = True) -> list[int]:
        """What the model reads for a prompt of text or ids; the begin-of-text token for an empty one.

        Raises `ParameterError` for ids that are no whole numbers or lie outside the vocabulary, and for
        an empty prompt where the model has no begin-of-text token.
        """
        V = self.engine.vocab_size
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt, add_special_tokens=add_special_tokens)
        elif isinstance(prompt, (bytes, Mapping)) or not isinstance(prompt, Iterable):
            raise ParameterError(f"a prompt is of type {type(prompt).__name__}: give text, or a list of ids")
        else:
            # What a NumPy array or a torch tensor holds becomes plain numbers.
            plain = prompt.tolist() if hasattr(prompt, "tolist") else list(prompt)
            for token in plain:
                if isinstance(token, bool) or not isinstance(token, Integral):
                    raise ParameterError(f"a prompt's ids hold {token!r}: they must be whole numbers")
            ids = [int(token) for token in plain]
        for token in ids:
            if not 0 <= token < V:
                raise ParameterError(
                    f"the prompt holds token {token:,}, but the model's vocabulary is 0 to {V - 1:,}"
                    + ("; the tokenizer belongs to another model" if isinstance(prompt, str) else "")
                )
        if not ids and self.bos_token_id is None:
            raise ParameterError(
                "the prompt is empty, and this model has no begin-of-text token to start from"
            )
        return ids or [int(self.bos_token_id or 0)]

    def _resolve(self, parameters: Parameters) -> GenerationParameters:
        return resolve_parameters(parameters, self.generation_config, self.eos_token_ids)

    def _request(
        self,
        prompt: Text,
        parameters: GenerationParameters,
        add_special_tokens: bool,
        skip_special_tokens: bool,
    ) -> Request:
        ids = self.prompt_ids(prompt, add_special_tokens)
        limit = parameters.new_token_limit(len(ids), self.engine.context_length)
        seed = None
        if parameters.do_sample:
            seed = draw_seed() if parameters.seed is None else parameters.seed
        return Request(ids, parameters, limit, seed, skip_special_tokens)

    def _single(
        self, prompt: Text, add_special_tokens: bool, skip_special_tokens: bool, parameters: Parameters
    ) -> Continuation:
        resolved = self._resolve(parameters)
        if resolved.num_return_sequences != 1:
            raise ParameterError(
                f"num_return_sequences is {resolved.num_return_sequences}, but generate and stream write "
                "one answer: call generate_batch([prompt], ...), which returns a list for each prompt"
            )
        request = self._request(prompt, resolved, add_special_tokens, skip_special_tokens)
        return continuations(request, self.tokenizer, self.engine.vocab_size)[0]
