"""Writes a bundle's tokenizer: the language model's with placeholders (docs/architecture.md section 10)."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from ..errors import CheckpointError
from ..generation.tokenizer import PLACEHOLDERS

_BOS, _EOS = "<|im_start|>", "<|im_end|>"
_ORDER = ("image", "audio", "frames", "face", "fusion")  # of the placeholders' ids


def write_tokenizer(source: Path, folder: Path) -> None:
    """Write the tokenizer of the Hugging Face folder `source`, with the placeholders, into `folder`."""
    tokenizer = _read(source)
    for token in (_BOS, _EOS):
        if tokenizer.token_to_id(token) is None:
            raise CheckpointError(f"{source}: the tokenizer has no {token}")
    tokenizer.add_special_tokens(
        [AddedToken(PLACEHOLDERS[stream], special=True, normalized=False) for stream in _ORDER]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {
        "bos_token": _BOS,
        "eos_token": _EOS,
        "pad_token": _EOS,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(names, indent=1) + "\n")


def _read(source: Path) -> Tokenizer:
    try:
        if (source / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(source / "tokenizer.json"))
        from transformers import AutoTokenizer  # reads the older vocab.json and merges.txt

        return AutoTokenizer.from_pretrained(source, local_files_only=True).backend_tokenizer
    except Exception as error:  # both libraries raise exceptions of many classes
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{source}: no tokenizer that can be read ({reason})") from error
