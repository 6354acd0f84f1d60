"""Answers in a chat: of a conversation only what is new is read.

A conversation is rendered anew for each answer, as its template wants it, and compared with what the
model has read already: from the first token that differs the model reads on, and forgets what it had
after it. So an answer costs the new message alone, whatever a template does with the older ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as ListOf
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

from tinylm.completion import Completion
from tinylm.continuation import Continuation, Progress, Prompt, Request
from tinylm.errors import ParameterError, TinylmError
from tinylm.generate import Stream
from tinylm.generation_config import resolve_parameters
from tinylm.parameters import Parameters
from tinylm.sampler import draw_seed
from tinylm.tokenizer.tokenizer import Messages

if TYPE_CHECKING:
    from tinylm.engine import Engine, Sequence
    from tinylm.language_model import LanguageModel
    from tinylm.logits_processors import Logits
    from tinylm.parameters import GenerationParameters

LONGEST_ANSWER = 1024
"""Tokens of an answer where neither the call nor the model's generation_config.json sets a limit."""


def shared_length(left: ListOf[int], right: ListOf[int]) -> int:
    """How many tokens two texts have in common at their beginning."""
    length = min(len(left), len(right))
    if left[:length] == right[:length]:
        return length
    return next(place for place in range(length) if left[place] != right[place])


class KeptPrompt(Prompt):
    """A prompt that is read into a sequence which may hold its beginning already."""

    def __init__(self, request: Request, sequence: Sequence) -> None:
        super().__init__(request)
        self._kept = sequence
        self.reused = 0

    def begin(self, engine: Engine, progress: Progress | None) -> tuple[Sequence, Logits]:
        """The sequence with the whole prompt; the logits (V,) after it, which its last token gives."""
        started = time.perf_counter()
        sequence, ids = self._kept, self._ids
        self.reused = min(shared_length(sequence.ids, ids), len(ids) - 1)
        sequence.truncate(self.reused)
        engine.reserve(sequence, self._room)
        logits = engine.prefill(sequence, ids[self.reused :], progress)
        self.seconds = time.perf_counter() - started
        return sequence, logits


class Answer:
    """An answer of a conversation while it is written: an iterator of pieces of text.

    `completion` is the answer so far; `reused_tokens` says how much of the prompt was not read again.
    Leaving the iteration, or `close`, ends the answer; what there is of it counts.
    """

    def __init__(
        self, stream: Stream, prompt: KeptPrompt, ended: Callable[[Completion], None] | None = None
    ) -> None:
        self._stream = stream
        self._prompt = prompt
        self._ended = ended

    def __iter__(self) -> Answer:
        return self

    def __next__(self) -> str:
        try:
            return next(self._stream)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the answer where it is."""
        self._stream.close()
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(self._stream.completion)

    @property
    def completion(self) -> Completion:
        """The answer so far."""
        return self._stream.completion

    @property
    def reused_tokens(self) -> int:
        """How many tokens of the prompt the model had read before."""
        return self._prompt.reused


class PrefixMemory:
    """What the model read last for a chat, for the next one that begins alike. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._sequence: Sequence | None = None

    def take(self, engine: Engine) -> Sequence:
        """The sequence, now the caller's own; an empty one where there is none or another has it."""
        with self._lock:
            sequence, self._sequence = self._sequence, None
        return engine.new_sequence() if sequence is None else sequence

    def give(self, sequence: Sequence) -> None:
        """Keep a sequence for the next."""
        with self._lock:
            self._sequence = sequence


class ChatOptions(Parameters, total=False):
    """What `chat` takes by name beside the parameters of `generate`."""

    tools: Messages | None
    documents: Messages | None
    chat_template: str | None
    continue_final_message: bool | str
    variables: Mapping[str, Any] | None
    skip_special_tokens: bool
    progress: Progress | None


def answer_messages(
    model: LanguageModel, memory: PrefixMemory, messages: Messages, options: ChatOptions
) -> Answer:
    """The answer to messages, with what `memory` holds of an earlier one."""
    rest: dict[str, Any] = dict(options)
    continued = rest.pop("continue_final_message", False)
    text = model.tokenizer.apply_chat_template(
        messages,
        tokenize=False,
        add_generation_prompt=not continued,
        continue_final_message=continued,
        **{name: rest.pop(name, None) for name in ("tools", "documents", "chat_template")},
        **(rest.pop("variables", None) or {}),
    )
    ids = model.prompt_ids(text, add_special_tokens=False)
    shown = rest.pop("skip_special_tokens", True)
    progress = rest.pop("progress", None)
    sequence = memory.take(model.engine)
    try:
        return answer(
            model,
            ids,
            sequence,
            cast(Parameters, rest),
            skip_special_tokens=shown,
            progress=progress,
            ended=lambda completion: memory.give(sequence),
        )
    except TinylmError:
        memory.give(sequence)
        raise


def answer(
    model: LanguageModel,
    ids: list[int],
    sequence: Sequence,
    parameters: Parameters,
    *,
    skip_special_tokens: bool = True,
    progress: Progress | None = None,
    ended: Callable[[Completion], None] | None = None,
) -> Answer:
    """The answer to a prompt of ids, to be read into `sequence`. Raises ContextError, ParameterError."""
    resolved = chat_parameters(model, parameters)
    if resolved.num_return_sequences != 1:
        raise ParameterError(
            f"num_return_sequences is {resolved.num_return_sequences}: a chat has one answer"
        )
    limit = resolved.new_token_limit(len(ids), model.engine.context_length)
    seed = None
    if resolved.do_sample:
        seed = draw_seed() if resolved.seed is None else resolved.seed
    request = Request(ids, resolved, limit, seed, skip_special_tokens)
    prompt = KeptPrompt(request, sequence)
    writing = Continuation(request, prompt, model.tokenizer, model.engine.vocab_size)
    return Answer(Stream(model.engine, writing, progress), prompt, ended)


def chat_parameters(model: LanguageModel, given: Parameters) -> GenerationParameters:
    """The parameters of an answer: it may be long, and ends where the template ends a turn."""
    resolved = resolve_parameters(given, model.generation_config, model.eos_token_ids)
    if not {"max_new_tokens", "max_length"} & set(model.generation_config):
        resolved = replace(resolved, default_max_new_tokens=LONGEST_ANSWER)
    if given.get("eos_token_id") is None and given.get("eos_token_ids") is None:
        ends = dict.fromkeys([*resolved.eos_token_ids, *end_of_turn_ids(model)])
        resolved = replace(resolved, eos_token_ids=tuple(ends))
    return resolved


def end_of_turn_ids(model: LanguageModel) -> list[int]:
    """The special token that the template writes after an answer, where it writes one.

    Some models say nowhere else that their answers end with it.
    """
    mark = "tinylm"
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": mark}]
    try:
        text = model.tokenizer.apply_chat_template(messages, tokenize=False)
    except TinylmError:
        return []
    after = text[text.rfind(mark) + len(mark) :].lstrip() if mark in text else ""
    first = model.tokenizer.encode(after, add_special_tokens=False)[:1]
    return [
        token for token in first if token in model.tokenizer.special_ids and token < model.engine.vocab_size
    ]
