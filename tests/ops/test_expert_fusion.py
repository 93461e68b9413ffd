"""expert_fusion: the definition against the model's module, the fold, kernels and gradient, and what is
refused.
"""

import pytest
import torch
from support import DTYPES, assert_as_good_as, random

import nanoemox_kernels as nk
from nanoemox.config import FusionConfig
from nanoemox.modules.fusion import MultiscaleFusion
from nanoemox_kernels.ops.expert_fusion import op, reference
from nanoemox_kernels.ops.expert_fusion.kernel import expert_fusion_fwd

# B, Ta, Tv, E, Da, Dv, H, heads, W: the model's (narrower), odd, one step, many clips, two tiles of steps and
# many blocks of keys, a wide head, smallest, empty
SHAPES = [
    (2, 8, 8, 3, 64, 48, 32, 4, 24),
    (3, 5, 6, 2, 9, 7, 12, 4, 7),
    (5, 1, 4, 2, 8, 8, 20, 2, 5),
    (17, 2, 3, 3, 8, 8, 24, 2, 5),
    (2, 20, 100, 2, 8, 8, 24, 2, 5),
    (3, 4, 3, 1, 16, 16, 72, 1, 9),
    (1, 1, 1, 1, 1, 1, 1, 1, 1),
    (0, 8, 8, 3, 8, 8, 8, 2, 8),
]


def folded_of(shape, dtype, device):
    """Folded weights of any shape, with their audio and vision."""
    B, Ta, Tv, E, Da, Dv, H, _, W = shape
    sizes = [
        (H, Da), (H,), (H, Dv), (H,), (E, 3 * H, H), (E, 3 * H), (E, H, H), (E, H), (E, H), (E, H),
        (E, H, H), (E, H),
        (E, H, H), (E, H), (H, E * H), (H,), (E, H), (E,), (W, H), (W,),
    ]  # fmt: skip
    raw = [
        random(s, dtype, device, 0.1 if i % 2 else s[-1] ** -0.5) for i, s in enumerate(sizes)
    ]  # odd: biases
    raw[8] = 1 + random((E, H), dtype, device, 0.1)  # LayerNorm
    audio, vision = random((B, Ta, E * Da), dtype, device), random((B, Tv, E * Dv), dtype, device)
    return nk.fold_expert_fusion(nk.ExpertFusionWeights(*raw)), audio, vision


def judge(got, audio, vision, folded, heads):
    low = reference.expert_fusion_folded(audio, vision, folded, heads)
    wide = nk.FoldedExpertFusion(*(t.double() for t in folded))
    exact = reference.expert_fusion_folded(audio.double(), vision.double(), wide, heads)
    for g, w, e in zip(got, low, exact, strict=True):
        assert_as_good_as(g, w, e)


def weights_of(fusion, dtype=torch.float32):
    """The op's weights out of the model's module."""
    state = {name: tensor.detach().to(dtype) for name, tensor in fusion.state_dict().items()}

    def stack(name):
        return torch.stack([state[f"experts.{e}.{name}"] for e in range(len(fusion.experts))])

    names = ["attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias"]
    names += [f"ffn.{i}.{part}" for i in (0, 1, 4) for part in ("weight", "bias")]
    plain = [f"{stem}_proj.{part}" for stem in ("audio", "visual") for part in ("weight", "bias")]
    gate = [f"gate_mlp.{i}.{part}" for i in (0, 3) for part in ("weight", "bias")]
    last = [state["proj.weight"], state["proj.bias"]]
    return nk.ExpertFusionWeights(
        *(state[n] for n in plain), *map(stack, names), *(state[n] for n in gate), *last
    )


def make(Da=12, Dv=10, H=16, E=3, heads=4, W=7):
    return MultiscaleFusion(FusionConfig(hidden_size=H, heads=heads), E, Da, Dv, W).eval()


@pytest.mark.parametrize(("B", "Ta", "Tv"), [(2, 8, 8), (3, 5, 6), (1, 1, 1), (0, 8, 8)])
def test_definition_is_the_models_fusion(B, Ta, Tv):
    fusion, audio, vision = make(), torch.randn(B, Ta, 36), torch.randn(B, Tv, 30)
    with torch.inference_mode():
        tokens, gates = fusion(None, audio, None, vision)
        token, ours, attention = nk.expert_fusion(
            audio, vision, weights_of(fusion), need_attention=True, heads=4
        )
        torch.testing.assert_close(token, tokens[:, 0])
        torch.testing.assert_close(ours, gates)
        assert attention.shape == (B, 3, 4, Ta, Tv)
        a = fusion.audio_proj(audio.unflatten(-1, (3, -1)))[:, :, 1]
        v = fusion.visual_proj(vision.unflatten(-1, (3, -1)))[:, :, 1]
        torch.testing.assert_close(attention[:, 1], fusion.experts[1].attn(a, v)[1])


@pytest.mark.parametrize(("B", "Ta", "Tv"), [(2, 8, 8), (3, 5, 6), (1, 1, 1), (0, 8, 8)])
def test_folding_changes_nothing(B, Ta, Tv):
    weights = weights_of(make(), torch.float64)
    audio, vision = (torch.randn(B, T, n, dtype=torch.float64) for T, n in ((Ta, 36), (Tv, 30)))
    raw = nk.expert_fusion(audio, vision, weights, need_attention=True, heads=4)
    folded = nk.expert_fusion(audio, vision, nk.fold_expert_fusion(weights), need_attention=True, heads=4)
    torch.testing.assert_close(folded, raw, rtol=0, atol=1e-12)


def test_key_bias_is_not_seen():
    weights = weights_of(make(), torch.float64)
    audio, vision = (torch.randn(2, 8, n, dtype=torch.float64) for n in (36, 30))
    bias = weights.cross_attns_in_proj_bias.clone()
    bias[:, 16:32] += 3  # the keys'
    shifted = weights._replace(cross_attns_in_proj_bias=bias)
    torch.testing.assert_close(
        nk.expert_fusion(audio, vision, shifted, need_attention=True, heads=4),
        nk.expert_fusion(audio, vision, weights, need_attention=True, heads=4),
        rtol=0,
        atol=1e-12,
    )


def test_folding_multiplies_no_matrix_out():
    weights = weights_of(make())
    folded = nk.fold_expert_fusion(weights)
    assert {t.data_ptr() for t in folded} >= {
        t.data_ptr() for n, t in weights._asdict().items() if "ffns_0" not in n and n.endswith("weight")
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_matches_the_folded_definition(shape, dtype, device):
    folded, audio, vision = folded_of(shape, dtype, device)
    B, Ta, Tv, E, *_, heads, W = shape
    got = op._cuda(audio, vision, list(folded), heads)
    assert [list(t.shape) for t in got] == [[B, W], [B, E], [B, E, heads, Ta, Tv]]
    judge(got, audio, vision, folded, heads)


def test_kernel_takes_mixed_dtypes(device):
    folded, audio, vision = folded_of(SHAPES[1], torch.float16, device)
    audio = audio.float()
    judge(expert_fusion_fwd(audio, vision, folded, 4), audio, vision, folded, 4)


def test_kernel_takes_strided_inputs(device):
    folded, audio, vision = folded_of(SHAPES[1], torch.float32, device)
    audio = audio.transpose(0, 1).contiguous().transpose(0, 1)
    vision = vision.mT.contiguous().mT
    strided = nk.FoldedExpertFusion(*(t.mT.contiguous().mT if t.ndim > 1 else t for t in folded))
    judge(expert_fusion_fwd(audio, vision, strided, 4), audio, vision, folded, 4)


@pytest.mark.parametrize("Tv", [8, 70])
def test_kernel_with_extreme_values(Tv, device):
    folded, audio, vision = folded_of((2, 8, Tv, 2, 32, 32, 32, 2, 8), torch.float32, device)
    audio, vision = 1e4 * audio, 1e4 * vision  # scores of 1e8: their exponential overflows
    got = expert_fusion_fwd(audio, vision, folded, 2)
    judge(got, audio, vision, folded, 2)
    torch.testing.assert_close(got[2].sum(-1), torch.ones(2, 2, 2, 8, device=device))


@pytest.mark.parametrize("Tv", [8, 40])
@pytest.mark.parametrize("modality", ["audio", "vision"])
def test_nan_stays_in_its_clip(modality, Tv, device):
    folded, audio, vision = folded_of((5, 4, Tv, 2, 8, 8, 16, 2, 8), torch.float32, device)
    clean = expert_fusion_fwd(audio, vision, folded, 2)
    (audio if modality == "audio" else vision)[2, 1, 3] = float("nan")
    token, gates, attention = expert_fusion_fwd(audio, vision, folded, 2)
    assert token[2].isnan().all() and gates[2].isnan().all()
    expected = torch.zeros_like(attention[2], dtype=torch.bool)
    expected[0, :, 1 if modality == "audio" else slice(None)] = (
        True  # the first expert's: of one step, or of all
    )
    assert torch.equal(attention[2].isnan(), expected)
    others = [0, 1, 3, 4]
    for a, b in zip((token, gates, attention), clean, strict=True):
        assert torch.equal(a[others], b[others])


def test_other_dtypes_go_to_the_definition(device):
    folded, audio, vision = folded_of(SHAPES[1], torch.float64, device)
    got = op._cuda(audio, vision, list(folded), 4)
    for g, e in zip(got, reference.expert_fusion_folded(audio, vision, folded, 4), strict=True):
        assert torch.equal(g, e)


def test_op_gradient_and_compilation():
    folded = nk.fold_expert_fusion(weights_of(make(4, 3, 4, 2, 2, 3), torch.float64))
    leaves = [t.requires_grad_() for t in folded]
    audio, vision = (
        torch.randn(2, T, n, dtype=torch.float64, requires_grad=True) for T, n in ((2, 8), (3, 6))
    )
    assert torch.autograd.gradcheck(
        lambda a, v, *w: nk.expert_fusion(a, v, nk.FoldedExpertFusion(*w), need_attention=True, heads=2),
        (audio, vision, *leaves),
    )
    plain = [t.detach().float() for t in (audio, vision, *leaves)]
    torch.library.opcheck(torch.ops.nanoemox.expert_fusion.default, (plain[0], plain[1], plain[2:], 2))
    folded = nk.FoldedExpertFusion(*plain[2:])
    compiled = torch.compile(
        lambda a, v: nk.expert_fusion(a, v, folded, heads=2)[:2], fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(*plain[:2]), nk.expert_fusion(*plain[:2], folded, heads=2)[:2])


def test_what_is_refused():
    weights, audio, vision = weights_of(make()), torch.randn(2, 8, 36), torch.randn(2, 8, 30)
    assert nk.expert_fusion(audio, vision, weights, heads=4)[2] is None
    for args, match in (
        ((audio[0], vision, weights), r"got \[8, 36\] and \[2, 8, 30\]"),
        ((audio, vision[:1], weights), r"got \[2, 8, 36\] and \[1, 8, 30\]"),
        ((audio[:, :, :35], vision, weights), r"audio \[B, Ta, 36\]"),
        ((audio[:, :0], vision, weights), "at least 1"),
        (
            (audio, vision, weights._replace(ffns_1_bias=torch.zeros(3, 2))),
            r"ffns_1_bias \[3, 16\], got \[3, 2\]",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            nk.expert_fusion(*args, heads=4)
    with pytest.raises(ValueError, match="3 heads"):
        nk.expert_fusion(audio, vision, weights, heads=3)


def test_cost_of_the_published_model():
    moved, flops = reference.cost(1, 8, 8, 3, 1024, 1024, 512, 1536)
    assert 14e6 < moved < 16e6 and 1e8 < flops < 4e8
