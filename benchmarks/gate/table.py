"""What the gate wants to find: the same with torch 2.11 on Python 3.13 and with torch 2.13 on Python 3.11."""

from __future__ import annotations

# What is counted, and by how much of itself it may differ either way: 0 is exact.
WITHIN = {
    "kernel launches": 0.0,  # of Triton's kernels
    "native calls": 0.0,  # into libowl_cpu; of an engine those that are made anew, not replayed
    "weight bytes": 0.0,  # of the language model's weights, as often as a kernel or a call is handed them
    "bytes handed to kernels": 0.0,  # of all tensors, as far as a kernel may look at them
    "bytes planned": 0.0,  # by the plan of memory, for the same training step
    "steps of all answers": 0.0,
    "torch operators": 0.02,  # that compute; autograd's own differ between versions
    "bytes at a time": 0.06,  # of results, the most at once; libowl_cpu's room depends on the instruction set
    "Python calls": 0.15,  # of a step of an engine; differ between versions of Python
}

COUNTS: dict[str, dict[str, int]] = {
    "7B decode step, bf16, 1 row": {
        "kernel launches": 163,
        "torch operators": 0,
        "bytes at a time": 2_357_760,
        "weight bytes": 13_214_687_232,
    },
    "7B decode step, int8, 1 row": {
        "kernel launches": 163,
        "torch operators": 0,
        "bytes at a time": 2_357_760,
        "weight bytes": 6_613_177_344,
    },
    "7B decode step, int4, 1 row": {
        "kernel launches": 163,
        "torch operators": 0,
        "bytes at a time": 2_357_760,
        "weight bytes": 3_717_013_504,
    },
    "7B decode step, int4, 64 rows": {
        "kernel launches": 163,
        "torch operators": 0,
        "bytes at a time": 150_896_640,
        "weight bytes": 3_717_013_504,
    },
    "7B prefill, bf16": {
        "kernel launches": 323,
        "torch operators": 12,
        "bytes at a time": 855_719_680,
        "bytes handed to kernels": 15_543_036_712,
    },
    "7B prefill, int4": {
        "kernel launches": 323,
        "torch operators": 12,
        "bytes at a time": 855_719_680,
        "bytes handed to kernels": 6_045_362_984,
    },
    "7B picture": {
        "kernel launches": 257,
        "torch operators": 4,
        "bytes at a time": 275_881_984,
        "bytes handed to kernels": 1_383_487_488,
    },
    "7B training step, stage 1": {
        "kernel launches": 1_335,
        "torch operators": 563,
        "bytes at a time": 26_601_609_576,
        "bytes handed to kernels": 84_930_001_060,
    },
    "7B training step, stage 2, int4": {
        "kernel launches": 1_165,
        "torch operators": 875,
        "bytes at a time": 23_955_622_248,
        "bytes handed to kernels": 64_650_301_604,
    },
    "nano decode step, bf16, 1 row": {
        "native calls": 39,
        "torch operators": 1,
        "bytes at a time": 7_040,
        "weight bytes": 3_837_312,
    },
    "nano decode step, int8, 1 row": {
        "native calls": 39,
        "torch operators": 1,
        "bytes at a time": 9_536,
        "weight bytes": 1_958_656,
    },
    "nano decode step, int4, 8 rows": {
        "native calls": 39,
        "torch operators": 1,
        "bytes at a time": 75_648,
        "weight bytes": 1_025_280,
    },
    "nano prefill, int4": {
        "native calls": 43,
        "torch operators": 11,
        "bytes at a time": 1_198_016,
    },
    "nano picture": {
        "native calls": 82,
        "torch operators": 4,
        "bytes at a time": 549_120,
    },
    "nano engine step, int4, 8 rows": {
        "steps of all answers": 16,
        "native calls": 0,
        "Python calls": 1_225,
    },
    "nano training step, stage 1": {
        "native calls": 58,
        "torch operators": 1_467,
        "bytes at a time": 12_256_776,
        "bytes planned": 52_675_072,
    },
    "nano training step, stage 2, int4": {
        "native calls": 92,
        "torch operators": 1_102,
        "bytes at a time": 4_594_440,
        "bytes planned": 24_722_944,
    },
}

# How many times as fast as the peer named last, at the least: half of what is seen, or less. Behind it what
# is seen on one core, from AVX2 to AVX-512, alone and beside other work.
LEAST = {
    "a row through a linear layer in int4, torch": 2.5,  # 6.5 to 20, by bandwidth
    "new rows over a paged cache, torch's attention": 0.45,  # 0.9 to 1.3
    "a picture, plain torch": 0.3,  # 0.6 to 0.9
    "an answer in int4, plain torch": 2.5,  # 5.5 to 11
    "a first token in int4, plain torch": 0.65,  # 1.4 to 2.1
    "a training step, plain torch": 0.4,  # 0.8 to 1.1
}
