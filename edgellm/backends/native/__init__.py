"""GGUF models on edgellm's own engine: dense decoders, on the CPU."""
