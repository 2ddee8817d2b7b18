"""Hugging Face folders, of safetensors: read, and written."""
