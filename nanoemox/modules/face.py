"""FaceXFormer's encoder and the temporal query attention over frames.

Source: docs/architecture.md section 8.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SwinConfig, SwinModel

from ..config import FRAME_SIZE, FaceConfig
from .attention import MultiheadAttention

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def imagenet_normalized(frames: Tensor) -> Tensor:
    """frames [N,3,H,W] in 0..255 -> normalised by ImageNet's mean and standard deviation, fp32."""
    mean, std = (
        torch.tensor(values, device=frames.device).view(3, 1, 1) for values in (_IMAGENET_MEAN, _IMAGENET_STD)
    )
    return (frames.float() / 255 - mean) / std


class FaceEncoder(nn.Module):
    """One feature vector per frame: Swin's four stages, fused by a linear pyramid head.

    The input is the raw frame, 0 to 255, as in the published model, unless the configuration requests
    ImageNet's normalisation (docs/architecture.md section 19, A4).
    """

    def __init__(self, config: FaceConfig):
        super().__init__()
        self.config = config
        self.swin = SwinModel(
            SwinConfig(
                image_size=FRAME_SIZE,
                embed_dim=config.embed_dim,
                depths=list(config.depths),
                num_heads=list(config.heads),
                window_size=config.window_size,
                mlp_ratio=config.mlp_ratio,
                layer_norm_eps=config.layer_norm_eps,
                drop_path_rate=0.0,
            ),
            add_pooling_layer=False,
        )
        size = config.feature_size
        widths = [config.embed_dim * 2**stage for stage in range(len(config.depths))]
        self.linear_c = nn.ModuleList(nn.Linear(width, size) for width in widths)
        self.linear_fuse = nn.Conv2d(size * len(widths), size, 1, bias=False)

    def stage_outputs(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Run the backbone.

        Args:
            frames: [N,3,H,W] in 0..255.

        Returns:
            The output [N,C,h,w] of each stage, before patch merging and the final norm.
        """
        pixels = imagenet_normalized(frames) if self.config.imagenet_normalize else frames.float()
        out = self.swin(
            pixels.to(self.swin.dtype),
            output_hidden_states=True,
            output_hidden_states_before_downsampling=True,
        )
        return out.reshaped_hidden_states[1:]

    def fuse(self, stages: tuple[Tensor, ...]) -> Tensor:
        """Stage outputs [N,C_s,h_s,w_s], first stage first -> [N,feature_size]."""
        size = stages[0].shape[-2:]
        maps = []
        for linear, stage in zip(self.linear_c, stages, strict=True):
            projected = linear(stage.movedim(1, -1)).movedim(-1, 1)
            maps.append(F.interpolate(projected, size, mode="bilinear", align_corners=False))
        fused = self.linear_fuse(torch.cat(maps[::-1], dim=1))  # it reads the last stage first
        return fused.mean((2, 3))

    def forward(self, frames: Tensor) -> Tensor:
        """frames [B,T,3,H,W] in 0..255, H and W divisible by 32 -> [B,T,feature_size]."""
        if frames.ndim != 5 or frames.shape[2] != 3:
            raise ValueError(f"want frames [B, T, 3, H, W], got {list(frames.shape)}")
        features = self.fuse(self.stage_outputs(frames.flatten(0, 1)))
        return features.unflatten(0, frames.shape[:2])


class FaceHead(nn.Module):
    """Learned queries attend over the frames; a projector turns them into language-model tokens."""

    def __init__(self, config: FaceConfig, width: int):
        super().__init__()
        self.query = nn.Parameter(torch.randn(config.queries, config.feature_size))
        self.attn = MultiheadAttention(config.feature_size, config.query_heads)
        self.project = nn.Sequential(
            nn.Linear(config.feature_size, config.projector_size),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.projector_size, width),
        )

    def attend(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """features [B,T,F] -> attended [B,M,F], attention [B,heads,M,T] in fp32."""
        queries = self.query.expand(features.shape[0], -1, -1)
        return self.attn(queries, features)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """features [B,T,F], any T -> tokens [B,M,width], attention [B,heads,M,T] in fp32."""
        attended, attention = self.attend(features)
        return self.project(attended), attention
