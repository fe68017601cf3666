"""Weights in fewer bits: one file per scheme, whole.py for models. The format: kernels/weights.py."""
