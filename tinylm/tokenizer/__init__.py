"""Text to ids and back, from a tokenizer.json, with json and regex alone."""

from .post_processors import Encoding
from .tokenizer import TextStream, Tokenizer

__all__ = ["Encoding", "TextStream", "Tokenizer"]
