"""Answers that must have a form: what callers ask for becomes a grammar, and the grammar the tokens that may come."""
