"""Everything that the parity fixtures expect, computed by our modules: name -> tensor.

Weights come from recipe.fill under the official names, inputs from recipe.signal or, where there are none,
from `inputs`.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from recipe import fill, signal
from torch import Tensor, nn

from nanoemox.bundle.official_names import targets
from nanoemox.config import (
    SAMPLE_RATE,
    AudioConfig,
    BranchConfig,
    FaceConfig,
    FusionConfig,
    NanoEmoXConfig,
    QFormerConfig,
    VisionConfig,
)
from nanoemox.media.positions import frame_indices, window_starts
from nanoemox.media.resample import Resampler
from nanoemox.modules.audio import AudioEncoder
from nanoemox.modules.face import FaceEncoder, FaceHead
from nanoemox.modules.fusion import build_fusion
from nanoemox.modules.qformer import build_branch
from nanoemox.modules.vision import VisionEncoder
from nanoemox.train.collate import collate

WIDTH, FEATURES = 1536, 1024
BOS, EOS = 151644, 151645
Tensors = dict[str, Tensor]
SMALL_VISION = VisionConfig(hidden_size=64, mlp_size=128, heads=4, image_size=28)
SMALL_AUDIO = AudioConfig(
    hidden_size=64,
    mlp_size=128,
    heads=4,
    conv_dim=(32,) * 7,
    position_kernel=16,
    position_groups=4,
    statistics="batch",
)


def filled(config: NanoEmoXConfig, strip: str = "", **parts: nn.Module) -> nn.Module:
    """The parts as attributes of one module, parameters filled under their official names without `strip`."""
    holder = nn.ModuleDict(parts)
    parameters = dict(holder.named_parameters())
    with torch.no_grad():
        for target in targets(holder, config):
            shape = list(parameters[target.parts[0]].shape)
            shape[0] *= len(target.parts)
            value = fill(target.name.removeprefix(strip), shape)
            for key, part in zip(target.parts, value.chunk(len(target.parts)), strict=True):
                parameters[key].copy_(part)
    return holder.eval().requires_grad_(False)


def fusion(inputs: Tensors) -> Tensors:
    config = NanoEmoXConfig()
    module = filled(config, fusion=build_fusion(config.fusion, config.qformer, 3, FEATURES, FEATURES, WIDTH))[
        "fusion"
    ]
    out = {}
    for case, (b, ta, tv) in {"A": (2, 8, 8), "B": (3, 5, 6), "C": (1, 8, 6)}.items():
        audio = signal(f"fusion/{case}/audio_multi", (b, ta, 3 * FEATURES))
        visual = signal(f"fusion/{case}/visual_multi", (b, tv, 3 * FEATURES))
        experts = module.run_experts(audio, visual)
        fused = module.fuse(experts, module.gate(experts))
        tokens, gate = module(None, audio, None, visual)
        values = {f"expert{e}": experts[:, e] for e in range(3)}
        values |= {"gate": gate, "fused": fused, "pooled": fused.mean(1), "tokens": tokens}
        out |= {f"fusion/{case}/{name}": value for name, value in values.items()}
    return out


def branches(inputs: Tensors) -> Tensors:
    config, out = NanoEmoXConfig(), {}
    for stem, branch, short in (("video", config.video_branch, 6), ("audio", config.audio_branch, 5)):
        name = f"{stem}_branch"
        module = filled(config, **{name: build_branch(branch, config.qformer, FEATURES, WIDTH)})[name]
        for case, (b, t) in {"A": (2, 8), "B": (1, short)}.items():
            features = signal(f"{name}/{case}/features", (b, t, FEATURES))
            out[f"{name}/{case}/tokens"] = module(features)
            if case == "B":
                out[f"{name}/B/qformer_hidden"] = module.qformer(features + module.position.weight[:t])
    return out


def face_head(inputs: Tensors) -> Tensors:
    module = filled(NanoEmoXConfig(), face_head=FaceHead(FaceConfig(), WIDTH))["face_head"]
    out = {}
    for case, (b, t) in {"A": (2, 8), "B": (1, 5)}.items():
        features = signal(f"face_head/{case}/features", (b, t, 256))
        out[f"face_head/{case}/attended"] = module.attend(features)[0]
        out[f"face_head/{case}/tokens"] = module(features)[0]
    return out


def face_encoder(inputs: Tensors) -> Tensors:
    modules = filled(
        NanoEmoXConfig(), face=FaceEncoder(FaceConfig()), face_head=FaceHead(FaceConfig(), WIDTH)
    )
    frames = inputs["face_encoder/frames_u8"]
    stages = modules["face"].stage_outputs(frames[0])
    features = modules["face"](frames)
    out = {f"face_encoder/stage{s}_mean": stage.mean((2, 3))[None] for s, stage in enumerate(stages)}
    return out | {"face_encoder/features": features, "face_encoder/tokens": modules["face_head"](features)[0]}


def clip(inputs: Tensors) -> Tensors:
    config = replace(NanoEmoXConfig(), vision=SMALL_VISION)
    module = filled(config, "visual_encoder.model.", vision=VisionEncoder(SMALL_VISION))["vision"]
    frames = inputs["clip_small/frames_u8"].transpose(1, 2)
    features, taps = module(frames)
    full = module.preprocess(inputs["clip_preprocess/frame_u8"].movedim(-1, 1))
    return {
        "clip_small/pixel_values": module.preprocess(frames.flatten(0, 1)),
        "clip_small/features": features,
        "clip_small/multi": taps,
        "clip_preprocess/pixel_values_every8": full[:, :, ::8, ::8],
    }


def hubert(inputs: Tensors) -> Tensors:
    config = replace(NanoEmoXConfig(), audio=SMALL_AUDIO)
    module = filled(config, "acoustic_encoder.model.", audio=AudioEncoder(SMALL_AUDIO))["audio"]
    windows = inputs["hubert_small/raw_audio_i16"][:, :, 0].float() / 32768
    features, taps = module(windows)
    alone, alone_taps = module(windows[:1])
    return {
        "hubert_small/input_values_every100": module.preprocess(windows).flatten(0, 1)[:, ::100],
        "hubert_small/features": features,
        "hubert_small/multi": taps,
        "hubert_small/features_first_sample_alone": alone,
        "hubert_small/multi_first_sample_alone": alone_taps,
    }


def resample(inputs: Tensors) -> Tensors:
    out = {}
    for rate in (8000, 22050, 44100, 48000):
        wave = signal(f"resample/{rate}", (rate // 10,), 0.3).numpy()
        resampler = Resampler(rate, SAMPLE_RATE)
        total = resampler.length(len(wave))
        low, high = resampler.needs(0, total)
        padded = torch.nn.functional.pad(torch.from_numpy(wave), (-low, max(high - len(wave), 0))).numpy()
        out[f"resample/{rate}/out"] = torch.from_numpy(resampler.run(padded, low, 0, total))[None]
    return out


def sampling(inputs: Tensors) -> Tensors:
    frames = (1, 2, 3, 7, 8, 9, 10, 15, 16, 17, 30, 31, 75, 100, 119, 250, 300, 777, 1000, 9001)
    samples = (1, 8000, 31999, 32000, 32001, 33000, 59200, 80000, 161968, 480000, 668092, 914002, 981111)
    out = {f"frame_indices/n{n}": torch.tensor(frame_indices(n)) for n in frames}
    return out | {f"audio_clips/n{n}/start": torch.tensor(window_starts(n)) for n in samples}


def collation(inputs: Tensors) -> Tensors:
    pairs = [
        (inputs[f"collate/s{i}/prompt"].tolist(), inputs[f"collate/s{i}/target"].tolist()) for i in range(3)
    ]
    ids, labels, mask = collate(pairs, bos=BOS, eos=EOS, pad=EOS)
    return {
        "collate/input_ids": ids,
        "collate/labels": labels,
        "collate/attention_mask": mask.to(torch.uint8),
    }


def variants(inputs: Tensors) -> Tensors:
    video, audio = (signal(f"variants/{name}", (2, 8, FEATURES)) for name in ("video", "audio"))
    out = {}
    for kind in ("attention", "qformer", "densemoe"):
        config = replace(NanoEmoXConfig(), fusion=FusionConfig(type=kind))
        part = build_fusion(config.fusion, QFormerConfig(), 3, FEATURES, FEATURES, WIDTH)
        tokens, gates = filled(config, fusion=part)["fusion"](audio, None, video, None)
        out[f"variants/multi_{kind}/tokens"] = tokens
        if kind == "densemoe":
            out["variants/multi_densemoe/weights"] = gates
    for stem, features in (("video", video), ("audio", audio)):
        for kind in ("mean", "attention"):
            branch = build_branch(BranchConfig(type=kind), QFormerConfig(), FEATURES, WIDTH)
            tokens = filled(NanoEmoXConfig(), **{f"{stem}_branch": branch})[f"{stem}_branch"](features)
            assert tokens.shape == (2, 32, WIDTH) and (tokens == tokens[:, :1]).all()
            out[f"variants/{stem}_{kind}/token"] = tokens[:, 0]
    return out


GROUPS: dict[str, Callable[[Tensors], Tensors]] = {
    group.__name__: group
    for group in (
        fusion, branches, face_head, face_encoder, clip, hubert, resample, sampling, collation, variants,
    )
}  # fmt: skip
# Inputs that no recipe rebuilds; audio_load's go through read_clip in test_media.
INPUTS = (
    "face_encoder/frames_u8", "clip_small/frames_u8", "clip_preprocess/frame_u8",
    "hubert_small/raw_audio_i16",
    *(f"collate/s{i}/{part}" for i in range(3) for part in ("prompt", "target")),
    *(f"audio_load/{case}/wave_i16" for case in ("stereo", "short", "mono44k")),
)  # fmt: skip
