"""Official files in, a bundle out; whatever does not belong is refused by name and leaves nothing behind."""

import pickle
from dataclasses import replace

import official
import pytest
import torch
from official import NARROW
from safetensors.torch import load_file, save_file

import nanoemox
from nanoemox.bundle.folder import sha256
from nanoemox.errors import CheckpointError, UsageError
from nanoemox.weights import convert


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("official")
    return {
        "checkpoint": official.checkpoint(NARROW, folder / "checkpoint_000060_loss_0.300.pth"),
        "components": official.components(NARROW, folder / "base"),
    }


@pytest.fixture(scope="module")
def bundles(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return {
        lora: convert(**files, out=folder / lora, lora=lora, dtype="float32", config=NARROW)
        for lora in ("keep", "merge")
    }


def test_every_value_arrives_under_its_official_name(bundles):
    tensors = load_file(bundles["keep"] / "model.safetensors")
    shapes = official.tensors(NARROW)
    assert set(tensors) == set(shapes)
    for name, shape in shapes.items():
        expected = official.value(name, shape)
        if name.startswith("llama_model.") and ".lora_" not in name:
            expected = expected.bfloat16().float()  # the language model is published in bf16
        assert torch.equal(tensors[name], expected), name


def test_sizes_are_read_off_the_files(bundles):
    config = nanoemox.NanoEmoXConfig.from_json(bundles["keep"] / "config.json")
    assert replace(config, name="narrow") == NARROW


def test_merged_adapters_answer_alike(bundles, sample):
    keep, merge = (nanoemox.load(folder, dtype="float32", device="cpu") for folder in bundles.values())
    assert merge.config.lora is None and not any("lora" in name for name, _ in merge.named_parameters())
    ids = torch.tensor([keep.prompt_ids(sample, "mer")])
    with torch.inference_mode():
        a, b = (m.language.start(m.splice(ids, m.encode(sample)))[0] for m in (keep, merge))
    assert (a - b).abs().max() <= 1e-4 * a.abs().max()
    assert keep.answer(sample, max_new_tokens=8).text == merge.answer(sample, max_new_tokens=8).text


def test_adapters_do_something(bundles, sample):
    model = nanoemox.load(bundles["keep"], fast=False, dtype="float32", device="cpu")
    embeds = torch.randn(1, 5, NARROW.language.hidden_size)
    with torch.inference_mode():
        before = model.language.start(embeds)[0]
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.zero_()
        assert (before - model.language.start(embeds)[0]).abs().max() > 1e-4


def test_both_weight_norm_spellings_and_bin_files(files, bundles, tmp_path):
    components = files["components"] | {
        "hubert": official.components(NARROW, tmp_path / "base", old_spelling=True)["hubert"]
    }
    out = convert(
        checkpoint=files["checkpoint"],
        components=components,
        out=tmp_path / "b",
        dtype="float32",
        config=NARROW,
    )
    a, b = (load_file(folder / "model.safetensors") for folder in (out, bundles["keep"]))
    assert set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_components_are_found_in_a_folder(files, bundles, tmp_path):
    folder = files["components"]["clip"].parent
    out = convert(
        checkpoint=[files["checkpoint"]],
        components=folder,
        out=tmp_path / "b",
        dtype="float32",
        config=NARROW,
    )
    assert sha256(out) == sha256(bundles["keep"])


def test_later_checkpoints_win(files, tmp_path):
    other = torch.full((48,), 7.0)
    later = official.checkpoint(NARROW, tmp_path / "later.pth", **{"video_proj.bias": other})
    paths = [files["checkpoint"], later]
    out = convert(checkpoint=paths, components=files["components"], out=tmp_path / "b", config=NARROW)
    assert (load_file(out / "model.safetensors")["video_proj.bias"] == 7).all()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"video_proj.bias": None}, "missing: video_proj.bias"),
        (
            {"video_proj.bias": None, "video_projection.bias": torch.zeros(48)},
            "unknown: video_projection.bias",
        ),
        ({"audio_llama_proj.weight": torch.zeros(48, 99)}, r"audio_llama_proj.weight is \[48, 99\]"),
        ({"video_proj.bias": "text"}, "video_proj.bias is not a tensor"),
    ],
)
def test_a_wrong_key_of_the_checkpoint_is_named(files, changes, named, tmp_path):
    path = official.checkpoint(NARROW, tmp_path / "x.pth", **changes)
    with pytest.raises(CheckpointError, match=named):
        convert(checkpoint=path, components=files["components"], out=tmp_path / "b", config=NARROW)
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vision_model.embeddings.class_embedding": None}, "class_embedding"),
        ({"new.tensor": torch.zeros(2)}, "unknown key new.tensor"),
        (
            {"encoder.layers.1.attention.k_proj.weight": torch.zeros(32, 31)},
            "layers.1.attention.k_proj.weight",
        ),
        ({"linear_fuse.weight": None}, "linear_fuse.weight"),
        ({"model.layers.1.self_attn.q_proj.bias": None}, "layers.1.self_attn.q_proj.base_layer.bias"),
    ],
)
def test_a_wrong_key_of_a_base_model_is_named(files, changes, named, tmp_path):
    components = official.components(NARROW, tmp_path / "base", changes=changes)
    with pytest.raises(CheckpointError, match=named):
        convert(checkpoint=files["checkpoint"], components=components, out=tmp_path / "b", config=NARROW)
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_merging_wants_every_adapter_whole(files, tmp_path):
    name = "llama_model.base_model.model.model.layers.1.self_attn.q_proj.lora_{}.default.weight"
    for changes, named in (
        ({name.format("A"): None, name.format("B"): None}, "missing: .*layers.1.self_attn.q_proj.lora_A"),
        ({name.format("A"): torch.zeros(4, 33)}, r"lora_A.default.weight is \[4, 33\]"),
        (
            {name.format("B"): torch.zeros(48, 4, dtype=torch.int8)},
            "lora_B.default.weight is not a dense float32",
        ),
    ):
        path = official.checkpoint(NARROW, tmp_path / "x.pth", **changes)
        for lora in ("merge", "keep"):
            with pytest.raises(CheckpointError, match=named):
                convert(
                    checkpoint=path,
                    components=files["components"],
                    out=tmp_path / "b",
                    config=NARROW,
                    lora=lora,
                )


def test_what_is_ambiguous_is_refused(files, tmp_path):
    folder = files["components"]["clip"].parent
    for name in ("clip", "hubert", "qwen", "face.pt"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "other").symlink_to(folder / "qwen")
    with pytest.raises(CheckpointError, match="qwen could be any of .*other"):
        convert(checkpoint=files["checkpoint"], components=tmp_path, out=tmp_path / "b", config=NARROW)
    double = official.components(NARROW, tmp_path / "base")["hubert"]
    tensors = load_file(double / "model.safetensors")
    save_file(tensors | {"hubert.encoder.layer_norm.bias": torch.zeros(32)}, double / "model.safetensors")
    with pytest.raises(CheckpointError, match="a second time"):
        parts = files["components"] | {"hubert": double}
        convert(checkpoint=files["checkpoint"], components=parts, out=tmp_path / "b", config=NARROW)


def test_sources_are_not_overwritten(files):
    for out in (files["components"]["qwen"], files["components"]["qwen"].parent):
        with pytest.raises(CheckpointError, match="choose another name"):
            convert(**files, out=out, config=NARROW)
    assert (files["components"]["qwen"] / "tokenizer.json").is_file()


def test_damaged_pickles(files, tmp_path):
    whole = files["checkpoint"].read_bytes()
    for data in (b"just text", b"", whole[:500], whole[: len(whole) // 2], bytes(2000)):
        (tmp_path / "x.pth").write_bytes(data)
        with pytest.raises(CheckpointError, match="x.pth"):
            convert(
                checkpoint=tmp_path / "x.pth",
                components=files["components"],
                out=tmp_path / "b",
                config=NARROW,
            )
    for content in ([1], {"model": {3: torch.zeros(1)}}, {"weights": {}}):
        torch.save(content, tmp_path / "x.pth")
        with pytest.raises(CheckpointError, match="is this the right file"):
            convert(
                checkpoint=tmp_path / "x.pth",
                components=files["components"],
                out=tmp_path / "b",
                config=NARROW,
            )


class Explosive:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def test_a_pickle_with_code_is_not_run(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"x": Explosive()}}, tmp_path / "x.pth")
    with open(tmp_path / "old.pth", "wb") as file:
        pickle.dump(Explosive(), file)
    for name in ("x.pth", "old.pth"):
        with pytest.raises(CheckpointError, match=name):
            convert(
                checkpoint=tmp_path / name, components=files["components"], out=tmp_path / "b", config=NARROW
            )
    assert not (tmp_path / "exploded").exists() and not (tmp_path / "b").exists()


def test_options_and_missing_parts(files, tmp_path):
    base = dict(out=tmp_path / "b", config=NARROW)
    with pytest.raises(UsageError, match="float16"):
        convert(**files, **base, dtype="float16")
    with pytest.raises(UsageError, match="lora"):
        convert(**files, **base, lora="drop")
    with pytest.raises(CheckpointError, match="qwen is missing"):
        parts = {k: v for k, v in files["components"].items() if k != "qwen"}
        convert(checkpoint=files["checkpoint"], components=parts, **base)
    with pytest.raises(CheckpointError, match="nowhere.pth"):
        convert(checkpoint=tmp_path / "nowhere.pth", components=files["components"], **base)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep me")
    with pytest.raises(CheckpointError, match="not a bundle"):
        convert(**files, out=tmp_path / "full", config=NARROW)
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep me"
