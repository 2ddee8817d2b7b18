"""The side-by-side measurement behind `edgellm bench`.

    contestants.py   edgellm and the bare loop; peers.py the engines of others, where they are installed
    worker.py        one contestant in a process of its own, which answers one request at a time
    measure.py       interleaved rounds, medians, ratios
    bandwidth.py     what the memory could deliver, and what a token needs of it

The screen is that of edgellm/cli/bench.py.
"""
