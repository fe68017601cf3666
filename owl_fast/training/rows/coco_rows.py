"""COCO's captions: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}.

A row is an annotation together with its image, found by its id in a sorted array.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

from owl_fast.errors import DataError, Reason
from owl_fast.training.rows.elements import elements
from owl_fast.training.rows.json_rows import parse_object
from owl_fast.training.rows.spans import Hash, SpanRows, Spans, read_span

IMAGES, ANNOTATIONS = "images", "annotations"


class CocoRows(SpanRows):
    """fields: {"annotation": {...}, "image": {...}}."""

    def find(self, digest: Hash) -> None:
        images = Spans()
        for element in elements(self.path, digest, keys=(IMAGES, ANNOTATIONS)):
            spans = images if element.key == IMAGES else self.spans
            spans.add(element.start, element.length, element.line)
        ids = array("q", (self._id(images, index) for index in range(len(images))))
        order = sorted(range(len(ids)), key=ids.__getitem__)
        self._ids = array("q", (ids[index] for index in order))
        self._images = Spans()
        for index in order:
            self._images.add(images.starts[index], images.lengths[index], images.lines[index])

    def _id(self, images: Spans, index: int) -> int:
        image = self._image(images, index)
        found = image.get("id")
        if not isinstance(found, int) or not -(2**63) <= found < 2**63:
            name = f"{self.path}:{images.lines[index]}"
            raise DataError(
                f'{name}: an image with "id" {found!r:.40}; wanted a whole number', Reason.WRONG_KEYS
            )
        return found

    def _image(self, images: Spans, index: int) -> dict[str, Any]:
        data = read_span(self.path, images.starts[index], images.lengths[index])
        return parse_object(data, f"{self.path}:{images.lines[index]}")

    def fields(self, data: bytes, name: str) -> Mapping[str, Any]:
        annotation = parse_object(data, name)
        wanted = annotation.get("image_id")
        place = bisect_left(self._ids, wanted) if isinstance(wanted, int) else len(self._ids)
        if place == len(self._ids) or self._ids[place] != wanted:
            raise DataError(
                f'{name}: "image_id" {wanted!r:.40}, which none of the file\'s images has',
                Reason.MISSING_PICTURE,
            )
        return {"annotation": annotation, "image": self._image(self._images, place)}
