"""Reading a config.json: each field by name with its type and bounds, what is not supported by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinylm.errors import CheckpointError
from tinylm.formats.table import QUANTIZED
from tinylm.kernels.rope import frequencies

QUANTIZATION_VERSION = 2
"""Of the layout of quantized folders: 1 had no rotation."""

LARGEST_SIZE = 1 << 24
"""No width, count or vocabulary is larger; a config that says so lies."""

SMALLEST_NUMBER, LARGEST_NUMBER = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""The configs' names -> ours. `gelu` is exact, with the error function."""


OTHER_NAMES = {
    "hidden_size": ("d_model", "n_embd", "dim", "embed_dim", "model_dim"),
    "num_hidden_layers": ("n_layers", "n_layer", "num_layers", "depth"),
    "num_attention_heads": ("n_heads", "n_head", "num_heads"),
    "intermediate_size": ("ffn_dim", "d_ff", "n_inner", "ffn_hidden_size", "hidden_dim", "mlp_dim"),
    "vocab_size": ("n_vocab", "vocabulary_size"),
}
"""What configs of custom code call the sizes: pointed at where one is missing, never taken unasked."""

KEYS_OF_OTHERS: dict[str, tuple[Any, ...]] = {
    "embedding_multiplier": (1,),
    "attention_multiplier": (),
    "residual_multiplier": (1,),
    "logits_scaling": (1,),
    "logit_scale": (1,),
    "scale_emb": (1,),
    "scale_depth": (),
    "dim_model_base": (),
    "clip_qkv": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "query_pre_attn_scalar": (),
}
"""Keys of architectures whose tensors look like ours (Granite, MiniCPM, OLMo, Cohere, Gemma 2), with the values
that change nothing."""


class Fields:
    """A config with checks. Every method raises CheckpointError that names the field and what was found."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def size(self, name: str, default: int | None = None) -> int:
        """A positive integer; None or absence means the default, without one the field is required."""
        value = self._config.get(name)
        if value is None:
            if default is None:
                raise CheckpointError(f"config.json lacks {name!r}{self._hint(name)}")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= LARGEST_SIZE:
            raise CheckpointError(f"config.json: {name!r} is {value!r}; expected 1 to {LARGEST_SIZE}")
        return value

    def _hint(self, name: str) -> str:
        """What a size that is missing may be called in this config."""
        found = [other for other in OTHER_NAMES.get(name, ()) if type(self._config.get(other)) is int]
        return f"; its {found[0]!r} of {self._config[found[0]]} may be what is meant" if found else ""

    def number(self, name: str, default: float) -> float:
        """A number above 0 that float32 holds; None or absence means the default."""
        value = self._config.get(name)
        if value is None:
            return default
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not SMALLEST_NUMBER <= value <= LARGEST_NUMBER:
            raise CheckpointError(
                f"config.json: {name!r} is {value!r}; expected a number above 0 that float32 holds"
            )
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self._config.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise CheckpointError(f"config.json: {name!r} is {value!r}; expected true or false")
        return value

    def activation(self, name: str, default: str) -> str:
        """One of `kernels.activation.ACTIVATIONS`."""
        value = self._config.get(name) or default
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise CheckpointError(
                f"config.json: {name!r} is {value!r}; supported are {', '.join(ACTIVATIONS)}"
            )
        return ACTIVATIONS[value]

    def refuse(self, **allowed: tuple[Any, ...]) -> None:
        """Fields that would change the numbers: anything but these values is refused."""
        for name, values in allowed.items():
            value = self._config.get(name)
            if value is not None and value not in values:
                raise CheckpointError(f"config.json: {name!r} is {value!r}, which is not supported")

    def refuse_keys_of_others(self, own: str) -> None:
        """Where the `model_type` is another's: what would change the numbers there, though the tensors fit."""
        if self._config.get("model_type") in (None, own):
            return
        self.refuse(**KEYS_OF_OTHERS)
        layers = self._config.get("no_rope_layers")
        if layers is not None and not (isinstance(layers, list) and all(layers)):  # 0: a layer without rope
            raise CheckpointError(f"config.json: 'no_rope_layers' is {layers!r}, which is not supported")

    def refuse_quantization(self) -> None:
        """Other tools' quantized checkpoints; our own name their method, and their tensors say the rest."""
        found = self._config.get("quantization_config")
        method, version = found, None
        if isinstance(found, dict):
            method, version = found.get("quant_method"), found.get("version")
        if method == "tinylm" and version != QUANTIZATION_VERSION:
            raise CheckpointError(
                f"config.json: this folder was quantized by another version of tinylm (layout {version!r}, here "
                f"{QUANTIZATION_VERSION}); quantize it again from the model's own folder"
            )
        if method == "tinylm" and isinstance(found, dict) and found.get("format") not in QUANTIZED:
            raise CheckpointError(
                f"config.json: this folder was quantized to {found.get('format')!r}; known are {', '.join(QUANTIZED)}"
            )
        if found is not None and method != "tinylm":
            raise CheckpointError(
                f"config.json: 'quantization_config' of method {method!r} is not supported; take the model's "
                "unquantized folder, and 'tinylm quantize' if it shall be smaller"
            )

    def heads(self) -> tuple[int, int, int]:
        """(heads, key/value heads, head_dim): checked to fit each other, `head_dim` as written if it is."""
        heads = self.size("num_attention_heads")
        key_value_heads = self.size("num_key_value_heads", heads)
        if heads % key_value_heads:
            raise CheckpointError(
                f"config.json: {heads} attention heads cannot share {key_value_heads} key/value heads evenly"
            )
        if self._config.get("head_dim") is not None:
            return heads, key_value_heads, self.size("head_dim")
        return heads, key_value_heads, self.split_width(heads)

    def split_width(self, heads: int) -> int:
        """The width of a head where the heads share `hidden_size` evenly."""
        width = self.size("hidden_size")
        if width % heads:
            raise CheckpointError(f"config.json: a width of {width} is not a multiple of {heads} heads")
        return width // heads

    def refuse_layer_types(self, allowed: str) -> None:
        """`layer_types`, where it is there, may name one kind of layer alone."""
        kinds = self._config.get("layer_types") or []
        others = (
            sorted({str(kind) for kind in kinds} - {allowed}) if isinstance(kinds, list) else [str(kinds)]
        )
        if others:
            raise CheckpointError(
                f"config.json: 'layer_types' has {others[0]!r}; only {allowed!r} is supported"
            )

    def refuse_window(self, name: str, default: int, context: int) -> None:
        """Attention to the last positions alone is not supported, where it is shorter than the context."""
        window = self.size(name, default)
        if window < context:
            raise CheckpointError(
                f"config.json: {name!r} is {window}, shorter than the context of {context}; attention to a window "
                "alone is not supported"
            )

    def rope(
        self, theta_name: str = "rope_theta", *, partial_name: str | None = None, default_partial: float = 1.0
    ) -> Rope:
        """The rotary parameters in their old spelling (`rope_theta`, `rope_scaling`) or transformers 5's.

        `partial_name` is the old name of the share of each head that turns; None for architectures whose
        heads turn whole.
        """
        merged, scaling = self._config.get("rope_parameters"), self._config.get("rope_scaling")
        for name, value in (("rope_parameters", merged), ("rope_scaling", scaling)):
            if value is not None and not isinstance(value, dict):
                raise CheckpointError(f"config.json: {name!r} is {value!r}; expected an object or null")
        if merged and scaling and merged != scaling:
            raise CheckpointError("config.json: 'rope_parameters' and 'rope_scaling' disagree; leave one out")
        parameters: dict[str, Any] = merged or scaling or {}
        fields = Fields(parameters)
        nested = [name for name, value in parameters.items() if isinstance(value, dict)]
        if nested:
            raise CheckpointError(f"config.json: 'rope_parameters' for {nested[0]!r} alone are not supported")
        theta = Fields(merged or {}).number("rope_theta", self.number(theta_name, 10_000.0))
        if theta < 1:
            raise CheckpointError(f"config.json: {theta_name!r} is {theta:g}; expected 1 or more")
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        old = default_partial if partial_name is None else self.number(partial_name, default_partial)
        share = fields.number("partial_rotary_factor", old)
        if partial_name is None:
            Fields({**self._config, **parameters}).refuse(partial_rotary_factor=(1,))
        elif share > 1:
            raise CheckpointError(f"config.json: {share:g} of each head cannot turn; expected at most 1")
        return Rope(theta, str(kind), fields, self.size("max_position_embeddings", 2048), share)


class Rope:
    """How positions turn into angles: `default`, `linear` or `llama3`; `partial` is the share of a head that turns."""

    def __init__(self, theta: float, kind: str, fields: Fields, context: int, partial: float = 1.0) -> None:
        if kind not in ("default", "linear", "llama3"):
            raise CheckpointError(
                f"config.json: rope type {kind!r} is not supported; default, linear and llama3 are"
            )
        self.theta, self.kind, self.fields = theta, kind, fields
        self.context, self.partial = context, partial

    def frequencies(self, rotary_dim: int) -> NDArray[np.float32]:
        """(rotary_dim / 2,) float32: angle a position. Definitions as in transformers' modeling_rope_utils."""
        if rotary_dim < 2 or rotary_dim % 2:
            raise CheckpointError(
                f"config.json: rotary embedding over {rotary_dim} numbers a head: expected an even number"
            )
        plain: NDArray[np.float32] = frequencies(rotary_dim, self.theta)
        if self.kind == "default":
            return plain
        factor = np.float32(self._required("factor"))
        if self.kind == "linear":
            linear: NDArray[np.float32] = (plain / factor).astype(np.float32)
            return linear
        return self._llama3(plain, factor)

    def _llama3(self, plain: NDArray[np.float32], factor: np.float32) -> NDArray[np.float32]:
        """Long waves are stretched by `factor`, short ones kept, those between blended (Llama 3.1)."""
        low, high = self._required("low_freq_factor"), self._required("high_freq_factor")
        original = float(self.fields.size("original_max_position_embeddings", self.context))
        if low >= high:
            raise CheckpointError(f"config.json: low_freq_factor {low} must be below high_freq_factor {high}")
        waves = np.float32(2 * np.pi) / plain
        blend = (np.float32(original) / waves - np.float32(low)) / np.float32(high - low)
        mixed = (1 - blend) * plain / factor + blend * plain
        scaled = np.where(waves > original / low, plain / factor, plain)
        between = (waves >= original / high) & (waves <= original / low)
        return np.where(between, mixed, scaled).astype(np.float32)

    def _required(self, name: str) -> float:
        missing = -1.0
        value = self.fields.number(name, missing)
        if value == missing:
            raise CheckpointError(f"config.json: rope type {self.kind!r} needs {name!r}")
        return value
