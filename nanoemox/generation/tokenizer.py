"""A bundle's tokenizer and the ids of its special tokens (docs/architecture.md section 10)."""

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as RustTokenizer

from ..bundle.folder import TOKENIZER
from ..config import NanoEmoXConfig
from ..errors import CheckpointError, InputError

PLACEHOLDERS = {
    "fusion": "<MultiHere>",
    "audio": "<AudioHere>",
    "face": "<FaceHere>",
    "frames": "<FrameHere>",
    "image": "<ImageHere>",
}


class Tokenizer:
    """tokenizer.json of a folder, with its bos and eos token from tokenizer_config.json.

    Attributes:
        bos, eos: the tokens that begin a prompt and end an answer; bos_id and eos_id are their ids.
        placeholder_ids: stream -> id that stands for one of its tokens in a prompt.

    Raises:
        CheckpointError: a file or a token that is missing.
    """

    FILES = TOKENIZER

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        for name in self.FILES:
            if not (self.folder / name).is_file():
                raise CheckpointError(
                    f"{self.folder / name}: missing; a bundle needs {' and '.join(self.FILES)}"
                )
        try:
            self.files = {name: (self.folder / name).read_bytes() for name in self.FILES}
            self.backend = RustTokenizer.from_buffer(self.files["tokenizer.json"])
            names = dict(json.loads(self.files["tokenizer_config.json"]))
        except Exception as error:  # the parser, which is written in Rust, raises bare Exception
            raise CheckpointError(f"{self.folder}: the tokenizer files cannot be read ({error})") from error
        self.backend.no_truncation()
        self.backend.no_padding()
        # The spelling of a special token inside a text stays text, so a subtitle cannot forge one.
        self.backend.encode_special_tokens = True
        self.bos, self.eos = (self._named(names, kind) for kind in ("bos_token", "eos_token"))
        self.bos_id, self.eos_id = self._id(self.bos), self._id(self.eos)
        self.placeholder_ids = {kind: self._id(token) for kind, token in PLACEHOLDERS.items()}

    def _named(self, names: dict, kind: str) -> str:
        token = names.get(kind)
        token = token.get("content") if isinstance(token, dict) else token
        if not isinstance(token, str):
            raise CheckpointError(f"{self.folder / 'tokenizer_config.json'}: {kind} is not set")
        return token

    def _id(self, token: str) -> int:
        id_ = self.backend.token_to_id(token)
        if id_ is None:
            raise CheckpointError(
                f"{self.folder / 'tokenizer.json'}: no token {token}; "
                "`nanoemox convert` adds the ones that the model needs"
            )
        return id_

    def __len__(self) -> int:
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, without special tokens. Raises InputError for text that is not valid Unicode."""
        try:
            # Command-line arguments hold escaped bytes where the locale is not UTF-8.
            text = text.encode("utf-8", "surrogateescape").decode("utf-8")
        except UnicodeError as error:
            raise InputError("the subtitle or the question is not valid Unicode text") from error
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, including special tokens."""
        return self.backend.decode(list(ids), skip_special_tokens=False)

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer's files, byte by byte as they were read."""
        for name, data in self.files.items():
            (Path(folder) / name).write_bytes(data)


def check_vocabulary(tokenizer: Tokenizer, config: NanoEmoXConfig, where: object) -> None:
    """Raises CheckpointError where the tokenizer has ids that the language model cannot look up."""
    # Placeholders are never looked up: their ids may lie past the embedding (docs/architecture.md section 9).
    looked_up = set(tokenizer.backend.get_vocab().values()) - set(tokenizer.placeholder_ids.values())
    known, embedded = max(looked_up) + 1, config.language.vocab_size
    if known > embedded:
        raise CheckpointError(
            f"{where}: the tokenizer knows {known} ids, the language model {embedded}; "
            "they do not belong together"
        )
