"""Training data checked, counted and repacked: `python -m owl_fast.data check|stats|shard SPEC ...`.

command    arguments, exit codes, check
stats      what is in it, in numbers
shard      webdataset tars of it
"""

from owl_fast.data.command import build_parser, main

__all__ = ["build_parser", "main"]
