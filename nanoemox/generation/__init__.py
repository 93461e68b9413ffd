"""From logits to text: tokenizer, sampler, stop rule, the loop over tokens, and a language model alone."""
