"""The command that serves: `python -m owl_fast.serve [MODEL]`.

arguments  what can be said
command    model, application and process put together
"""

from owl_fast.serve.arguments import build_parser
from owl_fast.serve.command import main

__all__ = ["build_parser", "main"]
