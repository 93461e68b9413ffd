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
from ..prompts import Templates

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@contextmanager
def new_folder(out: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder to write a bundle into. On success it is renamed to `out`, otherwise it is deleted.

    Args:
        out: absent, an empty folder, or a bundle, which is replaced.

    Raises:
        CheckpointError: `out` is something else, or cannot be written.
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
    """Whether this is an empty folder, or a bundle and no file besides."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    if not names:
        return True
    of_bundles = {CONFIG, CARD, *TOKENIZER, Templates.FILE}
    foreign = {name for name in names - of_bundles if not name.endswith(".safetensors")}
    if foreign or not {CONFIG, WEIGHTS} <= names:
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
    """SHA-256 of a bundle's weights file; of several files, of their content in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()
