"""A torch module as an ONNX file, and how far what that computes is from what it should."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import owl_fast
from owl_fast import ops
from owl_fast.engine.onnx_vision import FILE, INPUT, OUTPUT
from owl_fast.export.command import unbroken
from owl_fast.export.pictures import PicturePart

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18  # the one torch's exporter writes in; attention of opset 23 is no faster in ONNX Runtime on a CPU
BATCH = "batch"
# Above it weights go to DATA: a protobuf message ends at 2 GiB, and is in memory several times over.
EXTERNAL_BYTES = 1 << 30


def write_onnx(part: PicturePart, folder: Path, metadata: Mapping[str, str]) -> Path:
    """FILE in an empty folder, complete and checked: pixels (N, 3, S, S) -> features, for any N.

    part: on the CPU. metadata: of the model, beside what the graph itself says.
    """
    path = folder / FILE
    side = part.image_size
    with unbroken(), _quiet(), torch.no_grad(), ops.kernels(False):
        import onnx

        program = torch.onnx.export(
            part,
            (torch.zeros(2, 3, side, side),),  # torch would take a batch of one for a constant
            dynamo=True,
            dynamic_shapes={INPUT: {0: BATCH}},
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            verbose=False,
        )
        assert program is not None
        _describe(program.model, metadata)
        nbytes = sum(weight.nbytes for weight in part.parameters())
        program.save(path, external_data=nbytes > EXTERNAL_BYTES)
    onnx.checker.check_model(str(path), full_check=True)
    return path


def _describe(model: Any, metadata: Mapping[str, str]) -> None:
    """Whose model it is. Notes of the exporter go: paths of this machine are among them."""
    model.producer_name, model.producer_version = "owl_fast", owl_fast.__version__
    graph, nodes = model.graph, list(model.graph.all_nodes())
    results = [value for node in nodes for value in node.outputs]
    for described in (graph, *nodes, *graph.inputs, *graph.initializers.values(), *results):
        described.metadata_props.clear()
    model.metadata_props.update(metadata)


def put_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """The same for a file that another program has written, checked as write_onnx does it."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    model.producer_name, model.producer_version = "owl_fast", owl_fast.__version__
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """What torch's exporter says to those who develop it, users need not read."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class Gap(NamedTuple):
    """How far features are from others. error: the largest absolute difference, of values up to `largest`.
    cosine: of the row that points elsewhere the most; mean: of all rows."""

    error: float
    largest: float
    cosine: float
    mean: float

    @classmethod
    def between(cls, ours: Sequence[Tensor], wanted: Sequence[Tensor]) -> Gap:
        """Batches of features, pair by pair. NaN in any of them is NaN in the gap."""
        a, b = (torch.cat([batch.flatten(0, -2) for batch in side]).double() for side in (ours, wanted))
        cosines = torch.cosine_similarity(a, b, dim=-1)
        return cls(
            float((a - b).abs().max()), float(b.abs().max()), float(cosines.min()), float(cosines.mean())
        )
