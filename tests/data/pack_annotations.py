"""Packs a folder of annotation samples into tests/fixtures: `python tests/data/pack_annotations.py FOLDER`.

Archives of labels are kept as JSON and made again by the tests, so that no pickle lies here.
"""

import json
import sys
from pathlib import Path

import numpy as np

TARGET = Path(__file__).parent.parent / "fixtures" / "annotations.json"
LEFT_OUT = ("model_outputs", "dfew")


def main(folder: Path) -> None:
    texts, archives = {}, {}
    for path in sorted(folder.glob("*/*")):
        name = path.relative_to(folder).as_posix()
        if path.parent.name in LEFT_OUT:
            continue
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=True) as arrays:
                archives[name] = {key: arrays[key].tolist() for key in arrays.files}
        else:
            texts[name] = path.read_text()
    expected = json.loads((folder / "expected.json").read_text())["datasets"]
    packed = {"texts": texts, "archives": archives, "expected": expected}
    TARGET.write_text(json.dumps(packed, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
