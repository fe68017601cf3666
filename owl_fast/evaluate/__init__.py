"""How good a model is: `python -m owl_fast.evaluate owleval|nano|caption|vqa ...`, one file each.

command    which of them is meant
"""

from owl_fast.evaluate.command import build_parser, main

__all__ = ["build_parser", "main"]
