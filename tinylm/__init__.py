"""tinylm: small language models on a CPU, in Python you can read."""
__version__ = "0.1.0"
