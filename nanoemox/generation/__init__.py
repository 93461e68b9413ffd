"""From logits to text: tokenizer, sampling, stop rule, the loop over tokens, and a language model by itself."""
