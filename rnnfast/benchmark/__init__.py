"""Timing of recurrent layers against their peers: what ``rnnfast bench`` and ``benchmarks/`` share.

- :mod:`rnnfast.benchmark.measure`: timing in turn, the GEMM yardstick, where it ran, the CSV.
- :mod:`rnnfast.benchmark.layers`: shapes, cells, and a case measured on our kernels and its peers.
- :mod:`rnnfast.benchmark.quick`: the minute that ``rnnfast bench`` takes.
"""
