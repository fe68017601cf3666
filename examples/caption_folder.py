"""Captions for a folder of pictures, one JSON line each; run it again and it goes on where it stopped.

    python examples/caption_folder.py FOLDER captions.jsonl [--model MODEL] [--prompt TEXT] [--batch N]

Pictures that cannot be read are named on stderr and left out; the next run tries them again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from owl_fast import DataError, Engine, ImageError, OwlError, SamplingParams
from owl_fast.images import load_image

BEGIN = b'{"image": "'  # of every line written
ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}


def finished(out: Path) -> set[str]:
    """Names that have their line. A line that an interruption cut in half is taken off the file."""
    if not out.exists():
        return set()
    data = out.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    try:
        names = {str(json.loads(line)["image"]) for line in whole.splitlines()}
        if data[len(whole) :][: len(BEGIN)] != BEGIN[: len(data) - len(whole)]:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{out}: holds other lines than this program writes; name another file") from None
    with out.open("r+b") as file:
        file.truncate(len(whole))
    return names


def readable(folder: Path, names: list[str], bar: Any) -> Iterator[tuple[str, Any]]:
    """Name and picture; the bar moves on over what cannot be read."""
    for name in names:
        try:
            yield name, load_image(folder / name)
        except ImageError as error:
            tqdm.write(f"skipped {error}", file=sys.stderr)
            bar.update()


def caption(engine: Engine, prompt: str, params: SamplingParams, pictures: list[Any]) -> list[Any]:
    """One output per picture, computed together."""
    text = {"type": "text", "text": prompt}
    conversations = [
        [{"role": "user", "content": [{"type": "image", "image": picture}, text]}] for picture in pictures
    ]
    outputs = engine.generate([{"messages": messages} for messages in conversations], params)
    assert isinstance(outputs, list)
    return outputs


def run(args: argparse.Namespace) -> int:
    folder, out = Path(args.folder), Path(args.out)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix.lower() in ENDINGS
    )
    done = finished(out)
    left = [name for name in names if name not in done]
    engine = Engine.from_pretrained(args.model, max_context=512, max_batch=args.batch)
    params = SamplingParams(max_tokens=args.max_tokens)
    written = 0
    with (
        out.open("a", encoding="utf-8") as file,
        tqdm(total=len(names), initial=len(names) - len(left)) as bar,
    ):
        pictures = readable(folder, left, bar)
        while batch := list(islice(pictures, args.batch)):
            outputs = caption(engine, args.prompt, params, [picture for _, picture in batch])
            for (name, _), output in zip(batch, outputs, strict=True):
                if output.finish_reason == "error":
                    tqdm.write(f"skipped {name}: {output.error}", file=sys.stderr)
                else:
                    file.write(json.dumps({"image": name, "caption": output.text}, ensure_ascii=False) + "\n")
                    written += 1
            file.flush()
            bar.update(len(batch))
    print(f"{written} captions written, {len(done)} were there, {len(left) - written} pictures skipped")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Captions for a folder of pictures.")
    parser.add_argument("folder")
    parser.add_argument("out", help="JSON lines {image, caption}; appended to")
    parser.add_argument("--model", help="folder or hub id (default: the bundled owl-nano)")
    parser.add_argument("--prompt", default="Describe the picture.")
    parser.add_argument("--batch", type=int, default=8, help="pictures at once")
    parser.add_argument("--max-tokens", type=int, default=64)
    args = parser.parse_args()
    try:
        return run(args)
    except (OwlError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
