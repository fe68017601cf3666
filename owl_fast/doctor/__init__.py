"""What is installed here and what is missing; what a model is and needs: `python -m owl_fast.doctor [MODEL]`.

software   versions, processor, GPUs, libowl_cpu
model      a model's sizes and memory
pairs      pictures with captions, to see whether a model is read rightly
"""

from owl_fast.doctor.command import build_parser, main

__all__ = ["build_parser", "main"]
