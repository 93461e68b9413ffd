"""What the frozen encoders make of a clip, computed once and kept in safetensors shards.

A key holds the hash of the media's bytes and part, of the encoder's weights and sizes, and the version of the
preprocessing: whatever changes, the old entry is simply never asked for again. Clips are encoded one by one, so that an
entry does not depend on the clips beside it. Any number of processes may write: a shard is written whole under a name
of its own and then renamed.
"""

import contextlib
import hashlib
import json
import os
import threading
import uuid
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..bundle.tensors import write_safetensors
from ..data.record import Sample
from ..errors import MediaError
from ..model import NanoEmoX
from ..prompts import MODALITY_SETS

VERSION = "1"  # of the way from a file to features; a change of it makes every entry stale
_ENCODERS = {"frames": ("vision", "face"), "audio": ("audio",)}
_NAMES = {"frames": ("visual", "visual_taps", "face"), "audio": ("audio", "audio_taps")}
Entry = dict[str, Tensor]  # name -> [T,D], on the CPU


def streams(modalities: str) -> tuple[str, ...]:
    """What a modality set needs of the media: "frames", "audio", both or neither."""
    wanted = set(MODALITY_SETS[modalities].streams)
    frames, audio = wanted & {"frames", "face", "fusion"}, wanted & {"audio", "fusion"}
    return tuple(name for name, needed in (("frames", frames), ("audio", audio)) if needed)


class Features:
    """Encoder features of samples, from the cache folder where it has them.

    Args:
        model: its encoders are hashed now; they must not change afterwards.
        folder: of the cache; None keeps nothing.
        shard: entries written together.
    """

    def __init__(self, model: NanoEmoX, folder: Path | None, *, shard: int = 64):
        self.model, self.folder, self.shard = model, folder, shard
        self.encoded = 0  # entries computed
        self.disabled = ""  # why nothing more is written
        self._lock = threading.Lock()
        self._where: dict[str, Path] = {}
        self._pending: dict[str, Entry] = {}
        self._known: set[str] = set()
        self._hashes: dict[tuple, str] = {}
        self._weights: dict[str, str] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._weights = {stream: _weights_hash(model, parts) for stream, parts in _ENCODERS.items()}
            self.refresh()

    def refresh(self) -> None:
        """Learn of shards that other processes have written since. A shard that cannot be read counts as absent."""
        if self.folder is None:
            return
        for file in sorted(self.folder.glob("*.safetensors")):
            if file.name not in self._known:
                self._known.add(file.name)
                with contextlib.suppress(SafetensorError, OSError), safe_open(file, "pt") as shard:
                    found = {name.rpartition("/")[0] for name in shard.keys()}  # noqa: SIM118 (not a dict)
                    with self._lock:
                        self._where.update(dict.fromkeys(found, file))

    def key(self, sample: Sample, stream: str) -> str:
        """Raises MediaError for media that is not there."""
        file = sample.video if stream == "frames" else sample.audio or sample.video
        if file is None:
            raise MediaError(f"{sample.name}: the data set has no file for its {stream}")
        part = f"{self._media_hash(Path(file))}|{sample.start}|{sample.end}"
        return hashlib.sha256(f"{VERSION}|{stream}|{self._weights.get(stream)}|{part}".encode()).hexdigest()

    def _media_hash(self, file: Path) -> str:
        try:
            status = file.stat()
            known = (str(file), status.st_ino, status.st_size, status.st_mtime_ns)
            if known not in self._hashes:
                with open(file, "rb") as f:
                    self._hashes[known] = hashlib.file_digest(f, "sha256").hexdigest()
        except OSError as error:
            raise MediaError(f"{file}: {(error.strerror or 'cannot be read').lower()}") from error
        return self._hashes[known]

    def get(self, key: str, stream: str) -> Entry | None:
        """Safe to call from any thread."""
        with self._lock:
            if (entry := self._pending.get(key)) is not None:
                return entry
            file = self._where.get(key)
        if file is None:
            return None
        try:
            with safe_open(file, "pt") as shard:
                return {name: shard.get_tensor(f"{key}/{name}") for name in _NAMES[stream]}
        except (SafetensorError, OSError):
            return None  # removed or damaged meanwhile: encode again

    @torch.no_grad()
    def encode(self, key: str | None, stream: str, array: object) -> Entry:
        """One clip's frames [T,3,H,W] or windows [T,S] -> its features, which the cache takes under `key`."""
        batch = torch.as_tensor(array)[None].to(self.model.device)
        if stream == "frames":
            visual, taps = self.model.vision(batch)
            values = (visual, taps, self.model.face(batch))
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
        """Write what is pending. A full disk ends the writing, not the training: `disabled` says so."""
        if self.folder is None or not self._pending or self.disabled:
            return
        pending = dict(self._pending)
        tensors = {f"{key}/{name}": value for key, entry in pending.items() for name, value in entry.items()}
        name = f"{uuid.uuid4().hex}.safetensors"
        temporary, final = self.folder / f".{name}.tmp", self.folder / name
        try:
            shapes = {key: tuple(value.shape) for key, value in tensors.items()}
            write_safetensors(
                temporary, shapes, {k: v.dtype for k, v in tensors.items()}, tensors.__getitem__
            )
            os.rename(temporary, final)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            self.disabled = f"{self.folder}: no further features are kept ({error.strerror})"
            return
        self._known.add(name)
        with self._lock:
            self._where.update(dict.fromkeys(pending, final))
            for key in pending:
                del self._pending[key]


def _weights_hash(model: NanoEmoX, parts: Iterable[str]) -> str:
    """Of everything that decides the features but the media: sizes, dtype and every weight."""
    digest = hashlib.sha256()
    for part in parts:
        module: nn.Module = getattr(model, part)
        digest.update(json.dumps(model.config.to_dict()[part], sort_keys=True).encode())
        for name, value in module.named_parameters():
            digest.update(f"{name}|{value.dtype}|{list(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
