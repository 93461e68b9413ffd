"""expert_fusion: the definition against the model's module, its gradient, and what is refused."""

import pytest
import torch

import nanoemox_kernels as nk
from nanoemox.config import FusionConfig
from nanoemox.fusion import MultiscaleFusion
from nanoemox_kernels.ops.expert_fusion import reference


def weights_of(fusion, dtype=torch.float32):
    """The op's weights out of the model's module."""
    held = {name: tensor.detach().to(dtype) for name, tensor in fusion.state_dict().items()}

    def stack(name):
        return torch.stack([held[f"experts.{e}.{name}"] for e in range(len(fusion.experts))])

    names = ["attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias"]
    names += [f"ffn.{i}.{part}" for i in (0, 1, 4) for part in ("weight", "bias")]
    plain = [f"{stem}_proj.{part}" for stem in ("audio", "visual") for part in ("weight", "bias")]
    gate = [f"gate_mlp.{i}.{part}" for i in (0, 3) for part in ("weight", "bias")]
    last = [held["proj.weight"], held["proj.bias"]]
    return nk.ExpertFusionWeights(*(held[n] for n in plain), *map(stack, names), *(held[n] for n in gate), *last)


def make(Da=12, Dv=10, H=16, E=3, heads=4, W=7):
    return MultiscaleFusion(FusionConfig(hidden_size=H, heads=heads), E, Da, Dv, W).eval()


@pytest.mark.parametrize(("B", "Ta", "Tv"), [(2, 8, 8), (3, 5, 6), (1, 1, 1), (0, 8, 8)])
def test_definition_is_the_models_fusion(B, Ta, Tv):
    fusion, audio, vision = make(), torch.randn(B, Ta, 36), torch.randn(B, Tv, 30)
    with torch.inference_mode():
        tokens, gates = fusion(None, audio, None, vision)
        token, ours, attention = nk.expert_fusion(audio, vision, weights_of(fusion), need_attention=True, heads=4)
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


def test_op_gradient_and_compilation():
    folded = nk.fold_expert_fusion(weights_of(make(4, 3, 4, 2, 2, 3), torch.float64))
    leaves = [t.requires_grad_() for t in folded]
    audio, vision = (torch.randn(2, T, n, dtype=torch.float64, requires_grad=True) for T, n in ((2, 8), (3, 6)))
    assert torch.autograd.gradcheck(
        lambda a, v, *w: nk.expert_fusion(a, v, nk.FoldedExpertFusion(*w), need_attention=True, heads=2),
        (audio, vision, *leaves),
    )
    plain = [t.detach().float() for t in (audio, vision, *leaves)]
    torch.library.opcheck(torch.ops.nanoemox.expert_fusion.default, (plain[0], plain[1], plain[2:], 2))
    held = nk.FoldedExpertFusion(*plain[2:])
    compiled = torch.compile(
        lambda a, v: nk.expert_fusion(a, v, held, heads=2)[:2], fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(*plain[:2]), nk.expert_fusion(*plain[:2], held, heads=2)[:2])


def test_what_is_refused():
    weights, audio, vision = weights_of(make()), torch.randn(2, 8, 36), torch.randn(2, 8, 30)
    assert nk.expert_fusion(audio, vision, weights, heads=4)[2] is None
    for args, match in (
        ((audio[0], vision, weights), r"got \[8, 36\] and \[2, 8, 30\]"),
        ((audio, vision[:1], weights), r"got \[2, 8, 36\] and \[1, 8, 30\]"),
        ((audio[:, :, :35], vision, weights), r"audio \[B, Ta, 36\]"),
        ((audio[:, :0], vision, weights), "at least 1"),
        ((audio, vision, weights._replace(ffns_1_bias=torch.zeros(3, 2))), r"ffns_1_bias \[3, 16\], got \[3, 2\]"),
    ):
        with pytest.raises(ValueError, match=match):
            nk.expert_fusion(*args, heads=4)
    with pytest.raises(ValueError, match="3 heads"):
        nk.expert_fusion(audio, vision, weights, heads=3)


def test_cost_of_the_published_model():
    moved, flops = reference.cost(1, 8, 8, 3, 1024, 1024, 512, 1536)
    assert 14e6 < moved < 16e6 and 1e8 < flops < 4e8
