"""The command that trains: `python -m owl_fast.train --stage 2 --model DIR --data FILE ... --out DIR`.

arguments  what can be said, and each stage's defaults
run        model, data and trainer put together
watch      held-out loss, samples.md, curves
final      what a run leaves
"""

from owl_fast.train.arguments import build_parser
from owl_fast.train.command import main

__all__ = ["build_parser", "main"]
