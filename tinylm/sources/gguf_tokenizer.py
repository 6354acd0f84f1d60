"""GGUF metadata -> tokenizer.json and tokenizer_config.json.

GGUF keeps a vocabulary, its merges or scores, and the name of a pre-tokenizer. What it does not keep cannot
come back: whether an added token eats the spaces beside it (`lstrip`, `rstrip`) or must stand alone
(`single_word`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinylm.errors import CheckpointError
from tinylm.sources.gguf_pretokenizers import PRE_TOKENIZERS, Json, byte_level

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # tokenizer.ggml.token_type

LONGEST_PIECE = 512  # characters of a SentencePiece token; the merges of one are found in its square

SPECIAL_TOKENS = {  # the name in tokenizer_config.json -> GGUF's
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
}


@dataclass(frozen=True)
class ImportedTokenizer:
    """The two files, the special ids (bos_token, eos_token, ...), and all ids that end a text."""

    tokenizer: Json
    config: Json
    special_ids: dict[str, int]
    end_ids: list[int]


def import_tokenizer(file: Path, metadata: Mapping[str, Any], rows: int, context: int) -> ImportedTokenizer:
    """The tokenizer of a GGUF file's metadata, for an embedding of `rows` rows.

    Raises CheckpointError, naming the key, where it is damaged or of a kind that is not supported.
    """
    return _Importer(file, metadata, rows).result(context)


class _Importer:
    def __init__(self, file: Path, metadata: Mapping[str, Any], rows: int) -> None:
        self.file = file
        self.metadata = metadata
        tokens = self.list_of_strings("tokens")
        if not tokens:
            raise self.error("tokens", "holds no tokens")
        if len(tokens) > rows:
            raise self.error("tokens", f"{len(tokens)} tokens, but the embedding has {rows} rows")
        types = self.numbers("token_type") or [NORMAL] * len(tokens)
        if len(types) != len(tokens):
            raise self.error("token_type", f"{len(types)} entries for {len(tokens)} tokens")
        self.tokens = tokens
        self.types = types
        # Unused entries are padding of the embedding.
        self.ids: dict[str, int] = {}
        for id_, (token, type_) in enumerate(zip(tokens, types, strict=True)):
            if type_ == UNUSED:
                continue
            if token in self.ids:
                raise self.error("tokens", f"{token!r} is both token {self.ids[token]} and token {id_}")
            self.ids[token] = id_

    def result(self, context: int) -> ImportedTokenizer:
        kind = self.metadata.get("tokenizer.ggml.model")
        if kind == "gpt2":
            tokenizer = self.byte_level()
        elif kind == "llama":
            tokenizer = self.sentencepiece()
        else:
            raise self.error(
                "model", f"{kind!r} is not supported; possible: 'gpt2' (byte-level BPE), 'llama' (SPM)"
            )
        special_ids = {name: self.special_id(key) for name, key in SPECIAL_TOKENS.items()}
        found = {name: id_ for name, id_ in special_ids.items() if id_ is not None}
        ends = [self.special_id(key) for key in ("eos", "eot", "eom")]
        return ImportedTokenizer(
            tokenizer, self.config(found, context), found, sorted({id_ for id_ in ends if id_ is not None})
        )

    def byte_level(self) -> Json:
        name = self.metadata.get("tokenizer.ggml.pre", "default")
        pre = PRE_TOKENIZERS.get(name) if isinstance(name, str) else None
        if pre is None:
            raise self.error(
                "pre", f"the pre-tokenizer {name!r} is not known; possible: {', '.join(PRE_TOKENIZERS)}"
            )
        merges = self.list_of_strings("merges")
        for merge in merges:
            left, _, right = merge.partition(" ")
            if left not in self.ids or right not in self.ids or left + right not in self.ids:
                raise self.error("merges", f"{merge!r} does not join two tokens into a third")
        model = self.bpe(merges, ignore_merges=pre.ignore_merges)
        steps = list(pre.steps)
        return self.tokenizer_json(
            model,
            normalizer=pre.normalizer,
            pre_tokenizer=steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps},
            decoder=byte_level(use_regex=True),
            add_bos=pre.add_bos,
        )

    def sentencepiece(self) -> Json:
        prefix = self.flag("add_space_prefix", True)
        to_mark: Json = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        mark_first: Json = {"type": "Prepend", "prepend": "▁"}
        decoders: list[Json] = [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        if prefix:
            decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        unknown = self.special_id("unknown")
        if unknown is None and UNKNOWN in self.types:
            unknown = self.types.index(UNKNOWN)
        model = self.bpe(
            self.merges_of_scores(),
            byte_fallback=BYTE in self.types,
            fuse_unk=True,
            unk_token=None if unknown is None else self.tokens[unknown],
        )
        return self.tokenizer_json(
            model,
            normalizer={"type": "Sequence", "normalizers": [mark_first, to_mark]} if prefix else to_mark,
            pre_tokenizer=None,
            decoder={"type": "Sequence", "decoders": decoders},
            add_bos=True,
        )

    def merges_of_scores(self) -> list[str]:
        """The merges that a SentencePiece BPE vocabulary stands for, best first.

        SentencePiece joins the neighbours whose union has the best score, whatever the two are: so each pair
        of tokens that makes a third is a merge, ranked by the third's score. Ties go to the longer left part,
        as in transformers' conversion.
        """
        scores = self.metadata.get("tokenizer.ggml.scores")
        if scores is None or len(scores) != len(self.tokens):
            raise self.error(
                "scores", f"{0 if scores is None else len(scores)} for {len(self.tokens)} tokens"
            )
        normal = {token for token, id_ in self.ids.items() if self.types[id_] == NORMAL}
        ranked: list[tuple[float, int, int, str]] = []
        for token in normal:
            score = scores[self.ids[token]]
            if math.isnan(score):
                raise self.error("scores", f"the score of token {token!r} is not a number")
            if len(token) > LONGEST_PIECE:
                raise self.error(
                    "tokens", f"token {self.ids[token]} has {len(token)} characters, over {LONGEST_PIECE}"
                )
            for cut in range(1, len(token)):
                left, right = token[:cut], token[cut:]
                if left in normal and right in normal:
                    if " " in token:
                        raise self.error(
                            "tokens", f"token {token!r} holds a space, which SentencePiece writes as ▁"
                        )
                    ranked.append((-score, -cut, self.ids[token], f"{left} {right}"))
        return [merge for *_, merge in sorted(ranked)]

    def bpe(
        self,
        merges: list[str],
        byte_fallback: bool = False,
        ignore_merges: bool = False,
        fuse_unk: bool = False,
        unk_token: str | None = None,
    ) -> Json:
        return {
            "type": "BPE",
            "dropout": None,
            "unk_token": unk_token,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": fuse_unk,
            "byte_fallback": byte_fallback,
            "ignore_merges": ignore_merges,
            # Added tokens are in here too: the `tokenizers` library renumbers those that are not.
            "vocab": self.ids,
            "merges": merges,
        }

    def tokenizer_json(
        self, model: Json, normalizer: Json | None, pre_tokenizer: Json | None, decoder: Json, add_bos: bool
    ) -> Json:
        added = [
            {
                "id": id_,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": self.types[id_] != USER_DEFINED,
            }
            for token, id_ in self.ids.items()
            if self.types[id_] in (UNKNOWN, CONTROL, USER_DEFINED)
        ]
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": self.post_processor(add_bos),
            "decoder": decoder,
            "model": model,
        }

    def post_processor(self, add_bos: bool) -> Json | None:
        before = [self.special_id("bos")] if self.flag("add_bos_token", add_bos) else []
        after = [self.special_id("eos")] if self.flag("add_eos_token", False) else []
        special = {self.tokens[id_]: id_ for id_ in (*before, *after) if id_ is not None}
        if not special:
            return None

        def template(sequence: str, type_id: int) -> list[Json]:
            def around(ids: list[int | None]) -> list[Json]:
                return [
                    {"SpecialToken": {"id": self.tokens[id_], "type_id": type_id}}
                    for id_ in ids
                    if id_ is not None
                ]

            return [*around(before), {"Sequence": {"id": sequence, "type_id": type_id}}, *around(after)]

        return {
            "type": "TemplateProcessing",
            "single": template("A", 0),
            "pair": [*template("A", 0), *template("B", 1)],
            "special_tokens": {
                token: {"id": token, "ids": [id_], "tokens": [token]} for token, id_ in special.items()
            },
        }

    def config(self, special_ids: Mapping[str, int], context: int) -> Json:
        config: Json = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": context,
            "clean_up_tokenization_spaces": False,
            **{name: self.tokens[id_] for name, id_ in special_ids.items()},
        }
        template = self.metadata.get("tokenizer.chat_template")
        if isinstance(template, str):
            config["chat_template"] = template
        others = [
            {"name": key.removeprefix("tokenizer.chat_template."), "template": text}
            for key, text in self.metadata.items()
            if key.startswith("tokenizer.chat_template.") and isinstance(text, str)
        ]
        if others:
            default = [{"name": "default", "template": template}] if isinstance(template, str) else []
            config["chat_template"] = [*default, *others]
        return config

    def special_id(self, name: str) -> int | None:
        key = f"{name}_token_id"
        id_ = self.metadata.get(f"tokenizer.ggml.{key}")
        if id_ is None:
            return None
        if type(id_) is not int or not 0 <= id_ < len(self.tokens) or self.types[id_] == UNUSED:
            raise self.error(key, f"{id_!r} is not the id of one of the {len(self.tokens)} tokens")
        return id_

    def flag(self, name: str, default: bool) -> bool:
        return bool(self.metadata.get(f"tokenizer.ggml.{name}", default))

    def list_of_strings(self, name: str) -> list[str]:
        value = self.metadata.get(f"tokenizer.ggml.{name}")
        # An empty array says nothing of strings.
        if value is None or (not isinstance(value, list) and len(value)):
            raise self.error(name, "is missing or is not a list of strings")
        return list(value)

    def numbers(self, name: str) -> list[Any]:
        value = self.metadata.get(f"tokenizer.ggml.{name}")
        if value is None:
            return []
        if not isinstance(value, np.ndarray):
            raise self.error(name, "is not an array of numbers")
        numbers: list[Any] = value.tolist()
        return numbers

    def error(self, name: str, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.file}: tokenizer.ggml.{name}: {problem}")
