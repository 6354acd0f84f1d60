"""Maps the top-level `kernels/` folder to the package `tinylm.kernels`.

Everything else is in pyproject.toml. A top-level `kernels` must not be installed: the package
index has one of that name, which transformers imports. The committed symbolic link
`tinylm/kernels` serves bare checkouts, type checkers and editors.
"""

from setuptools import setup

setup(
    packages=[
        "tinylm",
        "tinylm.chat_template",
        "tinylm.cli",
        "tinylm.formats",
        "tinylm.kernels",
        "tinylm.models",
        "tinylm.sources",
        "tinylm.stories260k",
        "tinylm.tokenizer",
    ],
    package_dir={"tinylm": "tinylm", "tinylm.kernels": "kernels"},
    package_data={
        "tinylm": ["py.typed"],
        "tinylm.stories260k": ["*.json", "*.safetensors", "LICENSE", "README.md"],
    },
)
