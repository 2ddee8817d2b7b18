"""mixture: a feed-forward network of experts, of which a router picks a few for each token
(https://arxiv.org/abs/2401.04088).

    x (tokens, n_embd) ──▶ router ▶ softmax ▶ the best n_expert_used, their shares summing to 1: (n_expert, tokens)
    expert e:  the tokens with a share of e ──▶ feed-forward ▶ times the share ──▶ added to those tokens' sums

An expert is given its own tokens only, and multiplies nothing where there are none.
"""

from __future__ import annotations

import numpy as np

from .layers import Layers


def mixture(layers: Layers, x: str, i: int) -> str:
    """The experts of layer i. x, result: (batch, sequence, n_embd).

    The weights of expert e are `blk.{i}.ffn_gate.{e}.weight`, and so up and down: its part of the stacked ones.
    """
    graph, hyper = layers.graph, layers.hyper
    tokens = graph.node("Reshape", x, graph.constant([-1, hyper.n_embd], "INT64"))
    shares = graph.nodes("Split", (_shares(layers, x, i),), ["*"] * hyper.n_expert, axis=0)
    total, first = _zeros(layers, tokens), graph.constant([0], "INT64")
    for e, share in enumerate(shares):
        flat = graph.node("Squeeze", share, first)
        mine = graph.node("Transpose", graph.node("NonZero", flat), perm=(1, 0))  # (n, 1)
        own = graph.node("Unsqueeze", graph.node("GatherND", tokens, mine), first)  # (1, n, n_embd)
        made = graph.node("Squeeze", layers.feed_forward(own, f"blk.{i}.ffn", f".{e}"), first)
        weight = graph.node("Unsqueeze", graph.node("GatherND", flat, mine), graph.constant([1], "INT64"))
        total = graph.node("ScatterND", total, mine, graph.node("Mul", made, weight), reduction="add")
    return graph.node("Reshape", total, graph.node("Shape", x))


def _shares(layers: Layers, x: str, i: int) -> str:
    """What each expert has to say about each token: (n_expert, tokens), 0 where it was not picked."""
    graph = layers.graph
    chances = graph.node("Softmax", layers.linear(x, f"blk.{i}.ffn_gate_inp"), axis=-1)
    chances = graph.node("Reshape", chances, graph.constant([-1, layers.hyper.n_expert], "INT64"))
    best = graph.constant([layers.hyper.n_expert_used], "INT64")
    values, experts = graph.nodes("TopK", (chances, best), ("*", "*"), axis=-1)
    picked = graph.node("Div", values, graph.node("ReduceSum", values, graph.constant([-1], "INT64"), keepdims=1))
    return graph.node(
        "Transpose", graph.node("ScatterElements", _zeros(layers, chances), experts, picked, axis=1), perm=(1, 0)
    )


def _zeros(layers: Layers, like: str) -> str:
    graph = layers.graph
    return graph.node("ConstantOfShape", graph.node("Shape", like), value=np.zeros(1, np.float32))
