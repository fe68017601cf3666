"""Models on disk: finding out what is there, reading and writing weights, strict on both sides."""

from owl_fast.checkpoints.fingerprint import weights_sha256
from owl_fast.checkpoints.load import load_model
from owl_fast.checkpoints.source import Source, open_source
from owl_fast.checkpoints.tensorfile import read_tensors, write_tensors
from owl_fast.checkpoints.writer import copy_side_files, save_model

__all__ = [
    "Source",
    "copy_side_files",
    "load_model",
    "open_source",
    "read_tensors",
    "save_model",
    "weights_sha256",
    "write_tensors",
]
