"""Fusion of audio and vision: gated experts over the encoders' taps, and the official code's variants.

Every fusion takes features and taps of both encoders and returns tokens and gates. Letters: Ta and Tv time
steps of audio and vision, D width of an encoder, E experts, H width of the fusion.
Source: docs/architecture.md sections 7 and 18.
"""

import torch
from torch import Tensor, nn

from ..config import FusionConfig, QFormerConfig
from .attention import MultiheadAttention
from .qformer import QFormer


class Expert(nn.Module):
    """Cross-attention with queries from the audio and context from the vision; the residual is the audio."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.attn = MultiheadAttention(width, heads, dropout)
        self.ffn = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
        )

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        """audio [B,Ta,H], visual [B,Tv,H] -> [B,Ta,H]."""
        attended, _ = self.attn(audio, visual)
        residual = attended + audio
        return self.ffn(residual) + residual


class MultiscaleFusion(nn.Module):
    """token = proj(mean over time of G1*E1 + G2*E2 + G3*E3)."""

    def __init__(self, config: FusionConfig, experts: int, audio_width: int, visual_width: int, width: int):
        """
        Args:
            config: sizes of the fusion.
            experts: one for each tap.
            audio_width, visual_width: widths of the encoders.
            width: of the language model.
        """
        super().__init__()
        hidden = config.hidden_size
        self.tokens = config.tokens
        self.audio_proj = nn.Linear(audio_width, hidden)
        self.visual_proj = nn.Linear(visual_width, hidden)
        self.experts = nn.ModuleList(Expert(hidden, config.heads, config.dropout) for _ in range(experts))
        self.gate_mlp = nn.Sequential(
            nn.Linear(experts * hidden, hidden),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(hidden, experts),
        )
        self.proj = nn.Linear(hidden, width)

    def run_experts(self, audio_taps: Tensor, visual_taps: Tensor) -> Tensor:
        """audio_taps [B,Ta,E*D], visual_taps [B,Tv,E*D] -> [B,E,Ta,H]; expert e reads tap e."""
        count = len(self.experts)
        audio = self.audio_proj(audio_taps.unflatten(-1, (count, -1)))
        visual = self.visual_proj(visual_taps.unflatten(-1, (count, -1)))
        outputs = [expert(audio[:, :, e], visual[:, :, e]) for e, expert in enumerate(self.experts)]
        return torch.stack(outputs, dim=1)

    def gate(self, experts: Tensor) -> Tensor:
        """experts [B,E,T,H] -> [B,E] in fp32, rows sum to 1."""
        time_means = experts.mean(2)
        return self.gate_mlp(time_means.flatten(1)).float().softmax(-1)

    def fuse(self, experts: Tensor, gates: Tensor) -> Tensor:
        """experts [B,E,T,H], gates [B,E] in fp32 -> [B,T,H] in the dtype of the experts."""
        return torch.einsum("be,beth->bth", gates, experts.float()).to(experts.dtype)

    def forward(
        self, audio: Tensor, audio_taps: Tensor, visual: Tensor, visual_taps: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Fuse the taps of both encoders.

        Args:
            audio, visual: not used.
            audio_taps: [B,Ta,E*D].
            visual_taps: [B,Tv,E*D].

        Returns:
            Tokens [B,n,width] in the dtype of the weights, and gates [B,E] in fp32.
        """
        experts = self.run_experts(audio_taps, visual_taps)
        gates = self.gate(experts)
        pooled = self.fuse(experts, gates).mean(1)
        return _repeat(self.proj(pooled), self.tokens), gates


class AttentionFusion(nn.Module):
    """Variant `attention`: the sum of both time means with two scalar weights, without a softmax."""

    def __init__(self, config: FusionConfig, features: int, width: int):
        super().__init__()
        self.tokens = config.tokens
        self.video_embs = nn.Linear(features, features)
        self.audio_embs = nn.Linear(features, features)
        self.attention_mlp = nn.Linear(2 * features, features)
        self.fc_att = nn.Linear(features, 2)
        self.proj = nn.Linear(features, width)

    def forward(
        self, audio: Tensor, audio_taps: Tensor, visual: Tensor, visual_taps: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """audio [B,Ta,D], visual [B,Tv,D], taps are not used -> tokens [B,n,width], None."""
        visual_mean = self.video_embs(visual.mean(1))
        audio_mean = self.audio_embs(audio.mean(1))
        weights = self.fc_att(self.attention_mlp(torch.cat([visual_mean, audio_mean], -1)))
        mixed = weights[:, :1] * visual_mean + weights[:, 1:] * audio_mean
        return _repeat(self.proj(mixed), self.tokens), None


class QFormerFusion(nn.Module):
    """Variant `qformer`: a Q-Former over both streams, concatenated in time."""

    def __init__(self, config: FusionConfig, qformer: QFormerConfig, features: int, width: int):
        super().__init__()
        self.video_embs = nn.Linear(features, features)
        self.audio_embs = nn.Linear(features, features)
        self.position = nn.Embedding(config.positions, features)
        self.qformer = QFormer(qformer, features, config.tokens)
        self.proj = nn.Linear(qformer.hidden_size, width)

    def forward(
        self, audio: Tensor, audio_taps: Tensor, visual: Tensor, visual_taps: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """audio [B,Ta,D], visual [B,Tv,D], taps are not used -> tokens [B,n,width], None."""
        streams = torch.cat([self.video_embs(visual), self.audio_embs(audio)], dim=1)
        steps, limit = streams.shape[1], self.position.num_embeddings
        if steps > limit:
            raise ValueError(f"{steps} time steps, but the position table holds {limit}")
        context = streams + self.position.weight[:steps]
        return self.proj(self.qformer(context)), None


class DenseExpert(nn.Module):
    """An expert of `densemoe`: the sum of both time means with two weights from a softmax."""

    def __init__(self, features: int):
        super().__init__()
        self.video_embs = nn.Linear(features, features)
        self.audio_embs = nn.Linear(features, features)
        self.attention_mlp = nn.Sequential(
            nn.Linear(2 * features, features), nn.ReLU(), nn.Linear(features, 2)
        )

    def forward(self, visual: Tensor, audio: Tensor) -> Tensor:
        """Time means [B,D] of both streams -> [B,D]."""
        visual, audio = self.video_embs(visual), self.audio_embs(audio)
        weights = self.attention_mlp(torch.cat([visual, audio], -1)).softmax(-1)
        return weights[:, :1] * visual + weights[:, 1:] * audio


class DenseMoEFusion(nn.Module):
    """Variant `densemoe`: softly routed experts on time means.

    Routing noise is added in training only (docs/architecture.md section 19, A8).
    """

    def __init__(self, config: FusionConfig, features: int, width: int):
        super().__init__()
        self.tokens = config.tokens
        self.visual_projector = nn.Linear(features, features)
        self.audio_projector = nn.Linear(features, features)
        self.router = nn.Sequential(
            nn.Linear(2 * features, config.router_size),
            nn.ReLU(),
            nn.Linear(config.router_size, config.experts),
        )
        self.experts = nn.ModuleList(DenseExpert(features) for _ in range(config.experts))
        self.proj = nn.Linear(features, width)

    def route(self, visual: Tensor, audio: Tensor) -> Tensor:
        """Time means [B,D] of both streams -> weights [B,E] in fp32, rows sum to 1."""
        visual = self.visual_projector(visual).clamp(-10, 10)
        audio = self.audio_projector(audio).clamp(-10, 10)
        scores = self.router(torch.cat([visual, audio], -1)).float().clamp(-5, 5)
        if self.training:
            noise = (0.1 * torch.randn_like(scores)).clamp(-0.02, 0.02)
            scores = scores + noise
        weights = scores.softmax(-1).clamp(min=1e-6)
        return weights / (weights.sum(-1, keepdim=True) + 1e-8)

    def forward(
        self, audio: Tensor, audio_taps: Tensor, visual: Tensor, visual_taps: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """audio [B,Ta,D], visual [B,Tv,D], taps are not used -> tokens [B,n,width], gates [B,E] in fp32."""
        visual_mean, audio_mean = visual.mean(1), audio.mean(1)
        gates = self.route(visual_mean, audio_mean)
        experts = torch.stack([expert(visual_mean, audio_mean) for expert in self.experts], dim=1)
        mixed = torch.einsum("be,bef->bf", gates, experts.float()).to(experts.dtype)
        return _repeat(self.proj(mixed), self.tokens), gates


def _repeat(token: Tensor, count: int) -> Tensor:
    """[B,width] -> [B,count,width]."""
    return token.unsqueeze(1).expand(-1, count, -1)


def build_fusion(
    config: FusionConfig, qformer: QFormerConfig, taps: int, audio_width: int, visual_width: int, width: int
) -> nn.Module:
    """The fusion of a type.

    Args:
        config: its type and sizes.
        qformer: sizes of the Q-Former, for the type `qformer`.
        taps: of each encoder; the type `multiscale` has an expert for each.
        audio_width, visual_width: widths of the encoders; all types but `multiscale` need equal ones.
        width: of the language model.
    """
    if config.type == "multiscale":
        return MultiscaleFusion(config, taps, audio_width, visual_width, width)
    if config.type == "qformer":
        return QFormerFusion(config, qformer, visual_width, width)
    variants = {"attention": AttentionFusion, "densemoe": DenseMoEFusion}
    return variants[config.type](config, visual_width, width)
