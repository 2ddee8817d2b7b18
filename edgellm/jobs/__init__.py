"""Jobs: many requests, as lines of JSON in a file or rows of a program, answered by one model.

    input ──▶ Source: places of lines, sorted by how prompts begin ──▶ answers ──▶ Output: appended line by line
                                                                          │
                                        plain lines ─┬─ the server's Ask ─┴─▶ Model
                                   OpenAI's requests ┘

`answers` is the seam: lines and a model in, answers out, in order of completion. docs/batch.md is the guide.
"""
