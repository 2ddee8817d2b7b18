"""Text to tokens and back, for backends that bring no tokenizer of their own."""
