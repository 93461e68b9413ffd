"""Sizes of the encoders and of the language model, as the base models' own config.json states them."""

from pathlib import Path
from typing import Any

from ..config import NanoEmoXConfig
from ..errors import CheckpointError, UsageError
from ..generation.hugging_face import read_json

# Our field -> the key in config.json.
_VISION = {
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_size": "intermediate_size",
    "patch_size": "patch_size",
    "image_size": "image_size",
    "activation": "hidden_act",
    "layer_norm_eps": "layer_norm_eps",
}
_AUDIO = {
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_size": "intermediate_size",
    "activation": "hidden_act",
    "layer_norm_eps": "layer_norm_eps",
    "conv_dim": "conv_dim",
    "conv_kernel": "conv_kernel",
    "conv_stride": "conv_stride",
    "conv_bias": "conv_bias",
    "conv_norm": "feat_extract_norm",
    "conv_activation": "feat_extract_activation",
    "projection_layer_norm": "feat_proj_layer_norm",
    "stable_layer_norm": "do_stable_layer_norm",
    "position_kernel": "num_conv_pos_embeddings",
    "position_groups": "num_conv_pos_embedding_groups",
    "position_batch_norm": "conv_pos_batch_norm",
}
_LANGUAGE = {
    "model_type": "model_type",
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "mlp_size": "intermediate_size",
    "rms_norm_eps": "rms_norm_eps",
    "max_positions": "max_position_embeddings",
    "tied_embeddings": "tie_word_embeddings",
}


def component_sizes(config: NanoEmoXConfig, paths: dict[str, Path]) -> NanoEmoXConfig:
    """`config` with the sizes of the base models.

    Args:
        config: has the values that the files leave out.
        paths: component name -> path, from `find_components`.

    Raises:
        CheckpointError: a config.json that is missing, or whose sizes make no model.
    """
    values = config.to_dict()
    try:
        values["vision"] |= _vision(paths["clip"])
        values["audio"] |= _audio(paths["hubert"])
        values["language"] |= _language(paths["qwen"], values["language"])
        return NanoEmoXConfig.from_dict(values)  # checks every type and size
    except UsageError as error:
        files = ", ".join(f"{paths[name]}/config.json" for name in ("clip", "hubert", "qwen"))
        raise CheckpointError(f"{files}: sizes that make no model ({error})") from error


def _pick(values: dict[str, Any], keys: dict[str, str]) -> dict[str, Any]:
    return {field: values[key] for field, key in keys.items() if key in values}


def _object(values: dict[str, Any], key: str) -> dict[str, Any]:
    value = values.get(key) or {}
    if not isinstance(value, dict):
        raise UsageError(f"{key} must be an object, got {value!r}")
    return value


def _vision(folder: Path) -> dict[str, Any]:
    values = read_json(folder / "config.json")
    return _pick({**values, **_object(values, "vision_config")}, _VISION)


def _audio(folder: Path) -> dict[str, Any]:
    sizes = _pick(read_json(folder / "config.json"), _AUDIO)
    processor = folder / "preprocessor_config.json"
    if processor.is_file():
        sizes["normalize"] = read_json(processor).get("do_normalize", True)
    return sizes


def _language(folder: Path, defaults: dict[str, Any]) -> dict[str, Any]:
    file = folder / "config.json"
    values = read_json(file)
    rope = _object(values, "rope_parameters") or _object(values, "rope_scaling")
    rope_type = rope.get("rope_type") or rope.get("type") or "default"
    if rope_type != "default" or values.get("use_sliding_window"):
        raise CheckpointError(f"{file}: scaled rotary positions and sliding windows are not supported")
    activation = values.get("hidden_act", "silu")
    if activation != "silu":
        raise CheckpointError(f"{file}: hidden_act {activation!r} is not supported, silu is")
    sizes = _pick(values, _LANGUAGE)
    sizes["head_dim"] = values.get("head_dim") or _head_dim({**defaults, **sizes})
    theta = rope.get("rope_theta") or values.get("rope_theta", defaults["rope_theta"])
    sizes["rope_theta"] = float(theta) if isinstance(theta, int) else theta
    return sizes


def _head_dim(sizes: dict[str, Any]) -> int:
    width, heads = sizes["hidden_size"], sizes["heads"]
    if not isinstance(width, int) or not isinstance(heads, int) or heads < 1:
        raise UsageError(f"hidden_size {width!r} cannot be shared by {heads!r} heads")
    return width // heads
