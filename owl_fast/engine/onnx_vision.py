"""Pictures through an ONNX file in ONNX Runtime, in the place of a model's own tower: vision="onnx:DIR".

DIR is what `python -m owl_fast.export.onnx` writes. N pictures, S side in pixels, P patches, E width of the
tower, Q queries, C width of the language model; features are (N, 1 + P, E), or of "vision+abstractor" the
rows (N, Q + 1, C) that stand for the pictures in a prompt.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from owl_fast.checkpoints import Source
from owl_fast.checkpoints.fingerprint import part_sha256
from owl_fast.checkpoints.manifest import MANIFEST, Manifest
from owl_fast.errors import CheckpointError, ParameterError, UnsupportedError
from owl_fast.files import is_there
from owl_fast.lora import Adapter
from owl_fast.models.owl import Owl

SPELLING = "onnx:"
FILE = "model.onnx"
DATA = f"{FILE}.data"  # where weights lie that are too many for FILE itself
MAX_BYTES = 2 << 30  # of FILE: no protobuf message is larger
INPUT, OUTPUT = "pixels", "features"
# What may be exported: the model's names that go into the file.
PARTS: Mapping[str, tuple[str, ...]] = {
    "vision": ("vision_model.",),
    "vision+abstractor": ("vision_model.", "abstractor.", "query_tokens"),
}
PART, SIZE, DIGEST = "part", "image_size", "part_sha256"  # of the file's metadata
ANEW = "export the model anew with python -m owl_fast.export.onnx"


@dataclass(frozen=True)
class OnnxFile:
    """An exported part of a model on disk. digest: of the weights it was made of (part_sha256), which is how
    its model is known: a language model that was merged or quantized since makes no difference to pictures.
    signature: what goes in and what comes out. nbytes: of its files, about what they take in memory."""

    path: Path
    part: str
    image_size: int
    digest: str
    signature: str
    nbytes: int

    @classmethod
    def open(cls, spec: object) -> OnnxFile:
        """What "onnx:DIR" names. Nothing outside DIR is ever read: FILE and DATA are regular files, and no
        weight lies elsewhere. CheckpointError if it is not what the export writes."""
        if not isinstance(spec, str) or not spec.removeprefix(SPELLING) or not spec.startswith(SPELLING):
            raise ParameterError(f'vision {spec!r:.80}; wanted "onnx:DIR", DIR being a folder of the export')
        check_packages("onnx", "onnxruntime")
        folder = Path(spec.removeprefix(SPELLING))
        path, beside = folder / FILE, folder / DATA
        size = _regular(path)
        if size > MAX_BYTES:
            raise CheckpointError(f"{path}: {size} bytes; no ONNX file is so large; {ANEW}")
        data = _regular(beside) if is_there(beside) else 0
        if (manifest := Manifest.read(folder)) is None:
            raise CheckpointError(f"{folder}: {MANIFEST} is not there; copy the whole folder, or {ANEW}")
        for name in (FILE, DATA) if data else (FILE,):
            manifest.check_size(name)
        manifest.check()
        held = _read(path)
        places = set(_places(held))
        if others := places - {DATA}:
            raise CheckpointError(f"{path}: weights lie in {min(others)!r:.120}; wanted {DATA} beside it")
        if places and not data:
            raise CheckpointError(f"{beside}: no such file, and {FILE} has its weights there")
        told = {entry.key: entry.value for entry in held.metadata_props}
        part, side, digest = (told.get(key, "") for key in (PART, SIZE, DIGEST))
        if part not in PARTS or not re.fullmatch("[1-9][0-9]{0,3}", side) or not digest:
            raise CheckpointError(
                f"{path}: its metadata does not say {PART}, {SIZE} and {DIGEST} of a model; {ANEW}"
            )
        return cls(path, part, int(side), digest, _signature(held.graph), size + data)

    @property
    def modules(self) -> tuple[str, ...]:
        """Parts of the model that the file replaces."""
        return tuple(name.removesuffix(".") for name in PARTS[self.part] if name.endswith("."))

    def holds(self, name: str) -> bool:
        """Whether the weight of this name is in the file."""
        return name.startswith(PARTS[self.part])

    def check(self, source: Source) -> None:
        """CheckpointError unless it was made of this model's weights, and takes and gives what they would."""
        config = source.config
        side = config.vision.image_size
        if self.image_size != side:
            raise CheckpointError(
                f"{self.path}: takes pictures of {self.image_size} pixels a side, the model of {side}; "
                "it is another model's"
            )
        if (ours := part_sha256(source, PARTS[self.part])) != self.digest:
            raise CheckpointError(
                f"{self.path}: was made of weights with {DIGEST} {self.digest:.12}..., those of "
                f"{source.path} have {ours:.12}... ({self.part}); {ANEW}"
            )
        rows = 1 + config.vision.num_patches, config.vision.hidden_size
        if "abstractor" in self.modules:
            rows = config.image_rows, config.llama.hidden_size
        wanted = f"{_value(INPUT, FLOAT, ('N', 3, side, side))} -> {_value(OUTPUT, FLOAT, ('N', *rows))}"
        if self.signature != wanted:
            raise CheckpointError(
                f"{self.path}: computes {self.signature!r:.300}, and {self.part} of {source.path} is "
                f"{wanted!r}; {ANEW}"
            )

    def put_into(self, model: Owl) -> None:
        """Pictures of the model, loaded without what the file holds, go through the file from now on."""
        model.add_module("vision_model", OnnxTower(self, Session(self.path, model.device), model.dtype))
        if "abstractor" in self.modules:
            model.add_module("abstractor", Rows())


class OnnxTower(nn.Module):
    """In the place of a model's vision tower: pixels (N, 3, S, S), normalised, of any dtype -> what its file
    gives, in the model's dtype. Videos are not for it."""

    def __init__(self, file: OnnxFile, session: Session, dtype: torch.dtype) -> None:
        super().__init__()
        self.file, self._session, self._dtype = file, session, dtype

    def forward(self, pixels: Tensor) -> Tensor:
        return self._session(pixels).to(self._dtype)

    def check_adapter(self, folder: Path, adapter: Adapter) -> None:
        """UnsupportedError if the adapter changes what is in the file."""
        changed = [name for name in (*adapter.extra, *adapter.pairs) if self.file.holds(name)]
        if changed:
            raise UnsupportedError(
                f"{folder}: changes {changed[0]} and {len(changed) - 1} others of what lies in "
                f"{self.file.path}; load the model without vision=, or merge the adapter and export that"
            )


class Rows(nn.Module):
    """In the place of an abstractor whose rows the tower's file gives already."""

    def forward(self, queries: Tensor, rows: Tensor) -> Tensor:
        return rows


def onnx_tower(model: Owl) -> OnnxTower | None:
    tower = model.vision_model
    return tower if isinstance(tower, OnnxTower) else None


class Session:
    """An ONNX file in ONNX Runtime: pixels (N, 3, S, S) -> features, float32, on the session's device.

    threads: of one operation on a CPU; None takes as many as torch does.
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu", threads: int | None = None) -> None:
        import onnxruntime

        self._device = torch.device(device)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; what is wrong is raised, too
        options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
        # Threads that wait for the next picture would take the processor from decoding.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = _providers(self._device, onnxruntime.get_available_providers())
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        except Exception as error:  # a dozen types that have nothing in common
            said = " ".join(str(error).split())
            raise CheckpointError(f"{path}: ONNX Runtime cannot load it ({said:.300}); {ANEW}") from None
        running = self._session.get_providers()
        if self._device.type == "cuda" and CUDA not in running:
            raise UnsupportedError(
                f"ONNX Runtime cannot run on {self._device} and offers {', '.join(running)}: its CUDA or "
                'cuDNN libraries are missing or of another version; or take device="cpu"'
            )
        (output,) = self._session.get_outputs()
        self._shape = tuple(output.shape[1:])

    def __call__(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(self._device, torch.float32).contiguous()
        if self._device.type == "cpu":
            (features,) = self._session.run([OUTPUT], {INPUT: pixels.numpy()})
            return torch.from_numpy(features)
        return self._bound(pixels)

    def _bound(self, pixels: Tensor) -> Tensor:
        """Without a way over the host: ONNX Runtime reads and writes torch's own memory."""
        import numpy

        features = torch.empty((len(pixels), *self._shape), device=pixels.device)
        binding = self._session.io_binding()
        for bind, name, tensor in (
            (binding.bind_input, INPUT, pixels),
            (binding.bind_output, OUTPUT, features),
        ):
            place = tensor.device.type, tensor.device.index or 0
            bind(name, *place, numpy.float32, tuple(tensor.shape), tensor.data_ptr())
        torch.cuda.current_stream(pixels.device).synchronize()  # ONNX Runtime has a stream of its own
        self._session.run_with_iobinding(binding)  # back when it is done
        return features


CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def _providers(device: torch.device, offered: list[str]) -> list[Any]:
    if device.type == "cpu":
        return [CPU]
    if CUDA not in offered:
        raise UnsupportedError(
            f"pictures through ONNX Runtime on {device}: the installed one offers {', '.join(offered)}; "
            'pip install onnxruntime-gpu in its place, or take device="cpu"'
        )
    # As torch multiplies float32; and no more memory than it takes, which the cache's plan counts on.
    options = {"device_id": device.index or 0, "use_tf32": 0, "arena_extend_strategy": "kSameAsRequested"}
    return [(CUDA, options), CPU]


def check_packages(*names: str) -> None:
    """UnsupportedError unless these are installed."""
    if missing := [name for name in names if find_spec(name) is None]:
        raise UnsupportedError(f"{', '.join(missing)}: not installed; pip install '.[onnx]' in the checkout")


def _regular(path: Path) -> int:
    """Bytes of a regular file that is no link."""
    try:
        status = os.lstat(path)
    except (OSError, ValueError):
        raise CheckpointError(
            f"{path!s:.300}: no such file; wanted a folder that python -m owl_fast.export.onnx has written"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path}: a link, or no regular file; put the file itself there")
    return status.st_size


def _read(path: Path) -> Any:
    """The graph, without weights that lie beside it."""
    import onnx

    try:
        return onnx.load(path, load_external_data=False)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception:  # protobuf's own, which is no package of ours
        raise CheckpointError(f"{path}: no ONNX file, or a damaged one; {ANEW}") from None


FLOAT = 1  # float32 among ONNX's types of elements


def _signature(graph: Any) -> str:
    """Such as "pixels float32 (N, 3, 28, 28) -> features float32 (N, 17, 8)"; N: any number of pictures."""

    def told(values: Any) -> str:
        return ", ".join(_value(value.name, *_tensor(value.type.tensor_type)) for value in values)

    return f"{told(graph.input)} -> {told(graph.output)}"


def _tensor(kind: Any) -> tuple[int, list[object]]:
    """Type of the elements and sizes; of a size that is not fixed N where pictures are counted, else "?"."""
    dims = enumerate(kind.shape.dim)
    return kind.elem_type, [d.dim_value if d.HasField("dim_value") else "?" if at else "N" for at, d in dims]


def _value(name: str, kind: int, sizes: Iterable[object]) -> str:
    return f"{name} {'float32' if kind == FLOAT else f'type {kind}'} ({', '.join(map(str, sizes))})"


def _places(message: Any) -> Iterator[str]:
    """Where weights lie that are not in the message, in whatever part of a graph they are used."""
    if getattr(message, "external_data", ()):
        yield {entry.key: entry.value for entry in message.external_data}.get("location", "")
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if hasattr(value, "ListFields") else value:
                yield from _places(inner)
