"""Model folders: reading and writing weights, strict on both sides."""

from owl_fast.checkpoints.fingerprint import weights_sha256
from owl_fast.checkpoints.hf import load_model
from owl_fast.checkpoints.tensorfile import read_tensors, write_tensors
from owl_fast.checkpoints.writer import copy_side_files, save_model

__all__ = ["copy_side_files", "load_model", "read_tensors", "save_model", "weights_sha256", "write_tensors"]
