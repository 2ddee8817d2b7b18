"""The server: one ASGI application that speaks the protocols of OpenAI, Ollama and Anthropic over the same engine.

    client ──▶ listen ──▶ guard ──▶ endpoint ──▶ a dialect's handler ──▶ Ask ──▶ Answering ──▶ Model
                                       ◀── its answer, as JSON, events or lines ◀── chunks ◀──┘

`create_app` in app.py makes it; `edgellm serve` runs it. stdio.py is the same without a port.
"""
