"""Derives the tokenizer of the bundled story model from llama2.c's `tok512.bin`.

    python scripts/stories260k_tokenizer.py tok512.bin tinylm/stories260k

The file (https://huggingface.co/karpathy/tinyllamas, stories260K) holds the length of the longest token as an
int32 and then for each token its score as a float32, its length as an int32 and its bytes. Ids 0 to 2 are
unknown, begin and end; 3 to 258 the bytes; the others the pieces, spaces written as spaces. Such a vocabulary
has no list of merges: two neighbours may be merged wherever both and the result are tokens, the result with
the highest score first.
"""

from __future__ import annotations

import argparse
import json
import struct
from pathlib import Path

SPACE = "\u2581"
SPECIAL = ["<unk>", "<s>", "</s>"]
FIRST_PIECE = 3 + 256


def read_pieces(data: bytes) -> list[tuple[float, str]]:
    """Score and text of each token, in the order of their ids."""
    pieces = []
    place = 4
    while place < len(data):
        score, length = struct.unpack_from("<fi", data, place)
        place += 8
        pieces.append((score, data[place : place + length].decode()))
        place += length
    return pieces


def merges_of(pieces: list[tuple[float, str]], vocab: dict[str, int]) -> list[list[str]]:
    """All pairs of tokens whose concatenation is a token, best score first."""
    merges = []
    for score, text in pieces[FIRST_PIECE:]:
        token = text.replace(" ", SPACE)
        for cut in range(1, len(token)):
            pair = [token[:cut], token[cut:]]
            if all(part in vocab for part in pair):
                merges.append((-score, [vocab[part] for part in pair], pair))
    return [pair for _, _, pair in sorted(merges)]


def tokenizer_of(pieces: list[tuple[float, str]]) -> dict[str, object]:
    """The tokenizer.json."""
    tokens = [*SPECIAL, *(text.replace(" ", SPACE) for _, text in pieces[3:])]
    vocab = {token: id for id, token in enumerate(tokens)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    second = [{"SpecialToken": {"id": "<s>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id, "content": token, **flags} for id, token in enumerate(SPECIAL)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, text],
            "pair": [begin, text, *second],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges_of(pieces, vocab),
        },
    }


TOKENIZER_CONFIG = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "</s>",
    "model_max_length": 512,
    "tokenizer_class": "LlamaTokenizerFast",
    "unk_token": "<unk>",
}

# The model was trained on stories one after the other, each begun by <s>: that it begins the next one is how
# it ends a story, and where llama2.c stops too.
GENERATION_CONFIG = {"bos_token_id": 1, "eos_token_id": [1, 2]}


def main() -> None:
    """Write the three files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pieces", type=Path, help="tok512.bin")
    parser.add_argument("folder", type=Path, help="where the files go")
    arguments = parser.parse_args()
    files = {
        "tokenizer.json": tokenizer_of(read_pieces(arguments.pieces.read_bytes())),
        "tokenizer_config.json": TOKENIZER_CONFIG,
        "generation_config.json": GENERATION_CONFIG,
    }
    for name, content in files.items():
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (arguments.folder / name).write_text(text + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
