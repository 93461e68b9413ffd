"""A bundle as a folder: config.json, *.safetensors, tokenizer files, model card, maybe templates.json."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..config import NanoEmoXConfig
from ..errors import CheckpointError

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@contextmanager
def new_folder(out: str | os.PathLike) -> Iterator[Path]:
    """A folder to write into that takes the name `out` when all went well and vanishes otherwise.

    `out` may be absent, empty, or an older bundle, which is then replaced; anything else is refused.
    """
    final = Path(os.path.abspath(out))
    if final.exists() and not _replaceable(final):
        raise CheckpointError(f"{final}: exists and is not a bundle; choose another name")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    except OSError as error:
        raise CheckpointError(f"{final}: cannot be written ({error.strerror})") from error
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if not final.exists():
            temporary.rename(final)
            return
        old = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
        final.rename(old / "old")
        try:
            temporary.rename(final)
        except BaseException:
            if not final.exists():
                (old / "old").rename(final)
            raise
        finally:
            if final.exists():
                shutil.rmtree(old)
    except OSError as error:
        raise CheckpointError(f"{final}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replaceable(folder: Path) -> bool:
    """An empty folder, or a bundle with nothing of anyone else's in it."""
    if not folder.is_dir():
        return False
    names = [path.name for path in folder.iterdir()]
    if not names:
        return True
    ours = {CONFIG, CARD, *TOKENIZER, "templates.json"}
    if not all(name in ours or name.endswith(".safetensors") for name in names) or not {
        CONFIG,
        WEIGHTS,
    } <= set(names):
        return False
    try:
        NanoEmoXConfig.from_json(folder / CONFIG)
    except CheckpointError:
        return False
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sha256(folder: Path) -> str:
    """Of the weights file; of several, in the order of their names, one after the other."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as f:
            while block := f.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()
