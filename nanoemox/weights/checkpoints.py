"""Official checkpoints and base models under the official names (docs/architecture.md section 15)."""

import re
from pathlib import Path

from ..errors import CheckpointError
from .files import Found, Stored, Tensors, read_folder, read_pickle

# (pattern, official name or None to drop). The first match wins; a name without a match is an error.
Table = list[tuple[str, str | None]]

_CLIP: Table = [
    (r"(?:text_model\..*|(?:visual|text)_projection\.weight|logit_scale|.*position_ids)", None),
    (
        r"(?:vision_model\.)?((?:embeddings|pre_layrnorm|encoder|post_layernorm)\..*)",
        r"visual_encoder.model.vision_model.\1",
    ),
]
_HUBERT: Table = [
    (r"(?:lm_head|final_proj|projector|classifier|layer_weights|label_embs_concat)\b.*", None),
    (r"(?:hubert\.)?(.*)\.weight_g", r"acoustic_encoder.model.\1.parametrizations.weight.original0"),
    (r"(?:hubert\.)?(.*)\.weight_v", r"acoustic_encoder.model.\1.parametrizations.weight.original1"),
    (
        r"(?:hubert\.)?((?:masked_spec_embed|feature_extractor|feature_projection|encoder)\b.*)",
        r"acoustic_encoder.model.\1",
    ),
]
_FACE: Table = [
    (r"(?:module\.)?(?:face_decoder\..*|pe_layer\..*|.*relative_position_index)", None),
    (r"(?:module\.)?((?:backbone|linear_c|linear_fuse)\..*)", r"facial_encoder.facexformer.\1"),
]
_QWEN: Table = [(r".*rotary_emb\.inv_freq", None), (r"((?:model|lm_head)\..*)", r"llama_model.\1")]
_CHECKPOINT: Table = [
    # Left-over buffers, the tied head, and tensors that the deployed path never uses.
    (r".*\.(?:position_ids|relative_position_index)|facial_encoder\.lynorm\..*|image_llama_proj\..*", None),
    (r"llama_model\.(?:base_model\.model\.)?lm_head\.weight", None),
    (r"(.*)\.weight_g", r"\1.parametrizations.weight.original0"),
    (r"(.*)\.weight_v", r"\1.parametrizations.weight.original1"),
    (r"(.*)", r"\1"),
]


def read_components(paths: dict[str, Path]) -> Tensors:
    """Every tensor of the four base models that the model uses."""
    face = read_pickle(paths["facexformer"], "state_dict_backbone")
    return (
        _rename(read_folder(paths["clip"]), _CLIP, paths["clip"])
        | _rename(read_folder(paths["hubert"]), _HUBERT, paths["hubert"])
        | _rename(face, _FACE, paths["facexformer"])
        | _rename(read_folder(paths["qwen"]), _QWEN, paths["qwen"])
    )


def read_checkpoint(path: Path) -> Tensors:
    """Every tensor of an official phase checkpoint that the model uses."""
    return _rename(read_pickle(path, "model"), _CHECKPOINT, path)


def _rename(found: dict[str, Found], table: Table, path: Path) -> Tensors:
    """The tensors under their official names. Raises CheckpointError for a name that has none."""
    tensors: Tensors = {}
    for name, (shape, read) in found.items():
        official = _official_name(name, table, path)
        if official is None:
            continue
        if read is None:
            raise CheckpointError(f"{path}: {name} is not a dense float32, float16 or bfloat16 tensor")
        if official in tensors:
            raise CheckpointError(f"{path}: {name} occurs a second time under another spelling")
        tensors[official] = Stored(shape, read)
    return tensors


def _official_name(name: str, table: Table, path: Path) -> str | None:
    """The official name, or None for a tensor that is dropped."""
    for pattern, official in table:
        match = re.fullmatch(pattern, name)
        if match:
            return None if official is None else match.expand(official)
    raise CheckpointError(f"{path}: unknown key {name}")
