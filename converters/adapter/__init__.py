"""Adapters: what PEFT folders say, and checkpoints with that merged into them."""
