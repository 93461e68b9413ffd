"""The language model: Hugging Face's Qwen2 or Llama, with peft's LoRA until the adapters are merged.

Source: docs/architecture.md section 9.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from ..config import LanguageConfig, LoRAConfig

# model_type -> configuration and model of Hugging Face.
KINDS: dict[str, tuple[Any, Any]] = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}


def hugging_face_config(config: LanguageConfig) -> Any:
    """Hugging Face's configuration with the same sizes."""
    config_class, _ = KINDS[config.model_type]
    return config_class(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.mlp_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        max_position_embeddings=config.max_positions,
        tie_word_embeddings=config.tied_embeddings,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )


class LanguageModel(nn.Module):
    """The calls of `LanguagePart` on Hugging Face's model, and `forward` for training."""

    def __init__(self, model: Any):
        """model: Hugging Face's Qwen2 or Llama for causal language modelling, with or without adapters."""
        super().__init__()
        self.model: Any = model

    @classmethod
    def from_config(cls, config: LanguageConfig, lora: LoRAConfig | None = None) -> "LanguageModel":
        """Build a model with random weights.

        Args:
            config: its sizes.
            lora: of the adapters, or None for a model without.
        """
        _, model_class = KINDS[config.model_type]
        base = model_class(hugging_face_config(config))
        language = cls(base if lora is None else with_lora(base, lora))
        language.tie()
        return language

    @property
    def base(self) -> Any:
        """The Hugging Face model under the adapters."""
        has_adapters = hasattr(self.model, "peft_config")
        return self.model.get_base_model() if has_adapters else self.model

    def tie(self) -> None:
        """Share the embedding with the output head, where the configuration says so."""
        if self.base.config.tie_word_embeddings:
            self.base.lm_head.weight = self.base.model.embed_tokens.weight

    def embed(self, ids: Tensor) -> Tensor:
        """ids [...] -> [...,hidden_size] in the dtype of the weights."""
        return self.base.model.embed_tokens(ids)

    def start(
        self, prompts: Sequence[Tensor] | Tensor, shared: Tensor | None = None
    ) -> tuple[Tensor, list[Any]]:
        """Read prompts.

        Args:
            prompts: embedded, [L,hidden_size] each.
            shared: [P,hidden_size], what stands before every prompt, or None.

        Returns:
            Logits of the last positions [B,vocab] in the dtype of the weights, and the state for `step`: one
            cache for all prompts if they have the same length, else one per prompt.
        """
        rows = [prompt if shared is None else torch.cat([shared, prompt]) for prompt in prompts]
        same_length = len({len(row) for row in rows}) == 1
        batches = [torch.stack(rows)] if same_length else [row[None] for row in rows]
        logits, caches = [], []
        for embeds in batches:
            cache = DynamicCache(config=self.base.config)
            out = self.model(inputs_embeds=embeds, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits.append(out.logits[:, -1])
            caches.append(cache)
        return torch.cat(logits), caches

    def step(self, ids: Tensor, state: list[Any]) -> Tensor:
        """One more token of each sequence: ids [B] -> logits [B,vocab]."""
        logits = []
        for batch, cache in zip(ids.chunk(len(state)), state, strict=True):
            embeds = self.embed(batch[:, None])
            out = self.model(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
            logits.append(out.logits[:, -1])
        return torch.cat(logits)

    def keep(self, state: list[Any], rows: list[int]) -> None:
        """Continue with some of the sequences, by their rows."""
        if len(state) == 1:
            state[0].batch_select_indices(torch.tensor(rows, device=self.base.device))
        else:
            state[:] = [state[row] for row in rows]

    def end(self, state: list[Any]) -> None:
        """Release the caches."""
        state.clear()

    def forward(self, embeds: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """All positions at once: embeds [B,L,hidden_size] -> logits [B,L,vocab]."""
        return self.model(inputs_embeds=embeds, attention_mask=attention_mask, use_cache=False).logits


def with_lora(base: nn.Module, lora: LoRAConfig) -> nn.Module:
    """Add new adapters to a language model.

    Args:
        base: Hugging Face's model, which is changed.
        lora: rank, scale, dropout and names of the linear layers.

    Returns:
        peft's model around it.

    Raises:
        ValueError: no layer has one of the names.
    """
    from peft import LoraConfig, get_peft_model  # slow to import, and not needed without adapters

    adapters = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        bias="none",
    )
    with warnings.catch_warnings():
        # peft reads an attribute that transformers is renaming.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(base, adapters, autocast_adapter_dtype=False)


def merge_lora(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Merge an adapter: W + scale * B A, computed in fp32.

    Args:
        weight: W [out,in].
        a: [rank,in].
        b: [out,rank].
        scale: alpha / rank.

    Returns:
        [out,in] in the dtype of W.
    """
    merged = torch.addmm(weight.float(), b.float(), a.float(), alpha=scale)
    return merged.to(weight.dtype)


def attention_sizes(config: Any) -> tuple[int, int, int]:
    """Query heads, key-value heads and width of a head, from Hugging Face's configuration."""
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads, config.num_key_value_heads or heads, head_size
