"""Features of the frozen encoders, computed once and stored in shards (docs/training.md section 6).

The key of an entry is a hash of the media's bytes and part, of the encoder's weights and sizes, and of the
version of the preprocessing: if one of them changes, the old entry is not used again. Clips are encoded one
by one, so that an entry does not depend on its batch. Any number of processes may write: a shard is written
under a temporary name and then renamed.
"""

import contextlib
import hashlib
import json
import os
import threading
import uuid
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..bundle.tensors import write_safetensors
from ..data.record import Sample
from ..errors import MediaError
from ..model import NanoEmoX
from ..prompts import MODALITY_SETS

VERSION = "1"  # of the preprocessing from a file to features
_ENCODERS = {"frames": ("vision", "face"), "audio": ("audio",)}
_NAMES = {"frames": ("visual", "visual_taps", "face"), "audio": ("audio", "audio_taps")}
Entry = dict[str, Tensor]  # name -> [T,D], on the CPU, in the dtype of the encoder


def streams(modalities: str) -> tuple[str, ...]:
    """What a modality set reads from the media: "frames", "audio", both or neither."""
    used = set(MODALITY_SETS[modalities].streams)
    sources = (("frames", {"frames", "face", "fusion"}), ("audio", {"audio", "fusion"}))
    return tuple(name for name, users in sources if used & users)


class Features:
    """Encoder features of samples, from the cache folder where it has them.

    Args:
        model: its encoders are hashed in the constructor, and must not change afterwards.
        folder: of the cache; None stores nothing.
        shard: number of entries that are written together.

    Attributes:
        encoded: number of entries computed.
        disabled: why nothing more is written, "" otherwise.
    """

    def __init__(self, model: NanoEmoX, folder: Path | None, *, shard: int = 64):
        self.model, self.folder, self.shard = model, folder, shard
        self.encoded = 0
        self.disabled = ""
        self._lock = threading.Lock()
        self._shard_of: dict[str, Path] = {}  # key -> shard
        self._pending: dict[str, Entry] = {}  # key -> entry that is not written yet
        self._known_shards: set[str] = set()
        self._media_hashes: dict[tuple[str, int, int, int], str] = {}
        self._weight_hashes: dict[str, str] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._weight_hashes = {stream: _weights_hash(model, parts) for stream, parts in _ENCODERS.items()}
            self.refresh()

    def refresh(self) -> None:
        """Find shards that other processes have written. A shard that cannot be read counts as absent."""
        if self.folder is None:
            return
        for file in sorted(self.folder.glob("*.safetensors")):
            if file.name in self._known_shards:
                continue
            self._known_shards.add(file.name)
            with contextlib.suppress(SafetensorError, OSError), safe_open(file, "pt") as shard:
                keys = {name.rpartition("/")[0] for name in shard.keys()}  # noqa: SIM118 (not a dict)
                with self._lock:
                    self._shard_of.update(dict.fromkeys(keys, file))

    def key(self, sample: Sample, stream: str) -> str:
        """The key of a stream, "frames" or "audio". Raises MediaError if the file does not exist."""
        file = sample.video if stream == "frames" else sample.audio or sample.video
        if file is None:
            raise MediaError(f"{sample.name}: the data set has no file for its {stream}")
        part = f"{self._media_hash(Path(file))}|{sample.start}|{sample.end}"
        text = f"{VERSION}|{stream}|{self._weight_hashes.get(stream)}|{part}"
        return hashlib.sha256(text.encode()).hexdigest()

    def _media_hash(self, file: Path) -> str:
        """Hash of the file's bytes; computed again only if inode, size or time of the file has changed."""
        try:
            status = file.stat()
            version = (str(file), status.st_ino, status.st_size, status.st_mtime_ns)
            if version not in self._media_hashes:
                with open(file, "rb") as stream:
                    self._media_hashes[version] = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise MediaError(f"{file}: {(error.strerror or 'cannot be read').lower()}") from error
        return self._media_hashes[version]

    def get(self, key: str, stream: str) -> Entry | None:
        """The entry of a key, None if it is not in the cache. May be called from any thread."""
        with self._lock:
            entry = self._pending.get(key)
            file = self._shard_of.get(key)
        if entry is not None:
            return entry
        if file is None:
            return None
        try:
            with safe_open(file, "pt") as shard:
                return {name: shard.get_tensor(f"{key}/{name}") for name in _NAMES[stream]}
        except (SafetensorError, OSError):
            return None  # removed or damaged since: encode again

    @torch.no_grad()
    def encode(self, key: str | None, stream: str, array: np.ndarray) -> Entry:
        """Encode the frames [T,3,H,W] or windows [T,S] of one clip, and put the features into the cache.

        Args:
            key: key of the entry, None to store nothing.
            stream: "frames" or "audio".
            array: frames uint8 or windows float32.

        Returns:
            visual, visual_taps and face, or audio and audio_taps, each [T,D].
        """
        batch = torch.as_tensor(array)[None].to(self.model.device)
        values: tuple[Tensor, ...]
        if stream == "frames":
            values = (*self.model.vision(batch), self.model.face(batch))
        else:
            values = self.model.audio(batch)
        entry = {
            name: value[0].cpu().contiguous() for name, value in zip(_NAMES[stream], values, strict=True)
        }
        self.encoded += 1
        if key is not None and self.folder is not None and not self.disabled:
            with self._lock:
                self._pending[key] = entry
            if len(self._pending) >= self.shard:
                self.flush()
        return entry

    def flush(self) -> None:
        """Write the entries that are pending. If that fails, nothing more is written; training goes on."""
        if self.folder is None or not self._pending or self.disabled:
            return
        pending = dict(self._pending)
        tensors = {f"{key}/{name}": value for key, entry in pending.items() for name, value in entry.items()}
        name = f"{uuid.uuid4().hex}.safetensors"
        temporary, final = self.folder / f".{name}.tmp", self.folder / name
        try:
            shapes = {key: tuple(value.shape) for key, value in tensors.items()}
            dtypes = {key: value.dtype for key, value in tensors.items()}
            write_safetensors(temporary, shapes, dtypes, tensors.__getitem__)
            os.rename(temporary, final)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            self.disabled = f"{self.folder}: no further features are kept ({error.strerror})"
            return
        self._known_shards.add(name)
        with self._lock:
            self._shard_of.update(dict.fromkeys(pending, final))
            for key in pending:
                del self._pending[key]


def _weights_hash(model: NanoEmoX, parts: Iterable[str]) -> str:
    """Hash of sizes, dtype and every weight of these parts of the model."""
    digest = hashlib.sha256()
    for part in parts:
        module: nn.Module = getattr(model, part)
        digest.update(json.dumps(model.config.to_dict()[part], sort_keys=True).encode())
        for name, value in module.named_parameters():
            digest.update(f"{name}|{value.dtype}|{list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
