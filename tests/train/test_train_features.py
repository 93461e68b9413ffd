"""The feature cache: what it serves is what the encoders would compute, whoever writes beside it."""

import errno
import os
import threading

import pytest
import torch
from tiny_training import FULL, FakeSet, Reader

import nanoemox
from nanoemox.train import features as module
from nanoemox.train.features import Features


@pytest.fixture
def model(bundle):
    return nanoemox.load(bundle, fast=False, device="cpu", dtype="float32")


@pytest.fixture
def clips(tmp_path):
    return FakeSet("a", tmp_path / "media", ("emotion_recognition",))


def fill(cache, clips, indices):
    reader, out = Reader(), {}
    for index in indices:
        sample = clips.sample(index, "emotion_recognition", __import__("random"))
        clip = reader(sample, FULL)
        for stream in ("frames", "audio"):
            key = cache.key(sample, stream)
            out[key, stream] = cache.encode(key, stream, getattr(clip, stream))
    return out


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_served_is_computed(model, clips, tmp_path):
    cache = Features(model, tmp_path / "cache", shard=4)
    made = fill(cache, clips, range(5))
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2
    assert all(same(cache.get(*key), value) for key, value in made.items())  # two of them are not written yet
    cache.flush()
    again = Features(model, tmp_path / "cache")
    assert all(same(again.get(*key), value) for key, value in made.items())
    assert not [name for name in os.listdir(tmp_path / "cache") if name.endswith(".tmp")]


def test_a_clip_is_encoded_as_it_is_alone_in_the_model(model, clips, tmp_path):
    made = fill(Features(model, None), clips, [0])
    clip = Reader()(clips.sample(0, "emotion_recognition", __import__("random")), FULL)
    with torch.no_grad():
        features = model.encode_streams(
            torch.as_tensor(clip.frames)[None], torch.as_tensor(clip.audio)[None]
        ).features
    for entry in made.values():
        assert all(torch.equal(value, features[name][0]) for name, value in entry.items())


def test_a_stale_entry_is_never_served(model, clips, tmp_path, monkeypatch):
    cache = Features(model, tmp_path / "cache")
    fill(cache, clips, [0])
    cache.flush()
    sample = clips.sample(0, "emotion_recognition", __import__("random"))

    def served(other_model=model, requested=sample):
        fresh = Features(other_model, tmp_path / "cache")
        return [fresh.get(fresh.key(requested, stream), stream) is not None for stream in ("frames", "audio")]

    assert served() == [True, True]
    vision = next(model.vision.parameters())
    vision.data[0] += 1e-3  # other weights of one encoder
    assert served() == [False, True]
    vision.data[0] -= 1e-3
    with monkeypatch.context() as patch:
        patch.setattr(module, "VERSION", "next")
        assert served() == [False, False]
    clips.file(0).write_text("another clip")
    assert served() == [False, False]
    assert served(requested=module.Sample(**vars(sample) | {"start": 1.0})) == [False, False]


def test_a_file_that_changes_while_training(model, clips, tmp_path):
    cache = Features(model, tmp_path / "cache")
    sample = clips.sample(0, "emotion_recognition", __import__("random"))
    before = cache.key(sample, "audio")
    clips.file(0).write_text("something longer than it was")
    assert cache.key(sample, "audio") != before


def test_writers_beside_each_other(model, clips, tmp_path):
    caches = [Features(model, tmp_path / "cache", shard=2) for _ in range(4)]
    made = [{} for _ in caches]

    def work(n):
        made[n] |= fill(caches[n], clips, range(3 * n, 3 * n + 6) if n < 2 else range(6))
        caches[n].flush()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reader = caches[3]
    reader.refresh()
    for made_by_writer in made:
        assert all(same(reader.get(*key), value) for key, value in made_by_writer.items())


def test_damaged_and_removed_shards_are_absent(model, clips, tmp_path):
    cache = Features(model, tmp_path / "cache")
    (key, stream), _ = fill(cache, clips, [0]).popitem()
    cache.flush()
    (shard,) = (tmp_path / "cache").glob("*.safetensors")
    (tmp_path / "cache" / "torn.safetensors").write_bytes(shard.read_bytes()[:100])
    assert Features(model, tmp_path / "cache").get(key, stream) is not None
    shard.unlink()
    assert cache.get(key, stream) is None


def test_a_full_disk_ends_the_writing_only(model, clips, tmp_path, monkeypatch):
    cache = Features(model, tmp_path / "cache", shard=2)

    def full(path, *_):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "write_safetensors", full)
    made = fill(cache, clips, range(2))
    assert "No space left" in cache.disabled and not list((tmp_path / "cache").iterdir())
    assert all(entry for entry in made.values())
