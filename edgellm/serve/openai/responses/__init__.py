"""/v1/responses: answers with items for messages, and memory of what was answered.
https://platform.openai.com/docs/api-reference/responses

request ── items.py ──▶ items: those of the answers it goes on from, and its own ──▶ messages ──▶ Ask
                          ▲                                                                        │
       stored.py, while memory lasts ◀── answer.py: the Response ◀── output.py: its items ◀────────┘
                                                                         └── stream.py: told as they come
"""
