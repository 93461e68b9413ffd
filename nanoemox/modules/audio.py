"""HuBERT: time means of hidden states as features and taps.

Source: docs/architecture.md section 3.
"""

import torch
from torch import Tensor, nn
from transformers import HubertConfig, HubertModel

from ..config import AudioConfig


class AudioEncoder(nn.Module):
    """Hugging Face's HubertModel, run over each window of a clip by itself.

    features: the mean of the hidden states `config.feature_layers`, averaged over time; taps: the hidden
    states `config.taps`, each averaged over time, concatenated.
    """

    def __init__(self, config: AudioConfig):
        super().__init__()
        self.config = config
        self.model = HubertModel(
            HubertConfig(
                hidden_size=config.hidden_size,
                intermediate_size=config.mlp_size,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                hidden_act=config.activation,
                layer_norm_eps=config.layer_norm_eps,
                conv_dim=config.conv_dim,
                conv_kernel=config.conv_kernel,
                conv_stride=config.conv_stride,
                conv_bias=config.conv_bias,
                feat_extract_norm=config.conv_norm,
                feat_extract_activation=config.conv_activation,
                feat_proj_layer_norm=config.projection_layer_norm,
                do_stable_layer_norm=config.stable_layer_norm,
                num_conv_pos_embeddings=config.position_kernel,
                num_conv_pos_embedding_groups=config.position_groups,
                conv_pos_batch_norm=config.position_batch_norm,
                apply_spec_augment=False,
            )
        )

    def preprocess(self, windows: Tensor) -> Tensor:
        """windows [B,T,S] -> zero mean and unit variance over each sample's windows together, fp32."""
        windows = windows.float()
        if not self.config.normalize:
            return windows
        over = (1, 2) if self.config.statistics == "sample" else (0, 1, 2)
        mean = windows.mean(over, keepdim=True)
        variance = windows.var(over, correction=0, keepdim=True)
        return (windows - mean) / torch.sqrt(variance + 1e-7)

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """windows [B,T,S], 16 kHz -> features [B,T,D], taps [B,T,L*D], in the dtype of the weights."""
        if windows.ndim != 3:
            raise ValueError(f"want windows [B, T, samples], got {list(windows.shape)}")
        B, T = windows.shape[:2]
        waves = self.preprocess(windows).flatten(0, 1).to(self.model.dtype)
        out = self.model(waves, output_hidden_states=True)

        def time_mean(number: int) -> Tensor:
            # The last hidden state is the output of the final norm. Releases of transformers differ in what
            # hidden_states[-1] holds; last_hidden_state is the same in all of them.
            is_last = number == self.config.layers
            hidden = out.last_hidden_state if is_last else out.hidden_states[number]
            return hidden.mean(1)

        features = torch.stack([time_mean(number) for number in self.config.feature_layers]).mean(0)
        taps = torch.cat([time_mean(number) for number in self.config.taps], dim=-1)
        return features.unflatten(0, (B, T)), taps.unflatten(0, (B, T))
