"""Objects with tensors through a socket: equal, writable, and nothing left when the other end is gone."""

from __future__ import annotations

import os
import socket

import pytest
import torch

from owl_fast.errors import DataError
from owl_fast.training.handover import Gone, receive, send
from owl_fast.training.packing import pack
from tests.training.owls import CONFIG, made_up

TENSORS = {
    "float": torch.randn(3, 5, 7),
    "bfloat16": torch.randn(11).bfloat16(),
    "bool": torch.tensor([True, False, True]),
    "int32": torch.arange(6, dtype=torch.int32).view(2, 3),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 4),
    "strided": torch.randn(4, 6).T[1::2],
    "large": torch.randn(1000, 1000),
}


def through(value: object) -> object:
    here, there = socket.socketpair()
    with here, there:
        send(there, value)
        return receive(here)


def test_tensors_of_all_kinds() -> None:
    found = through(TENSORS)
    assert isinstance(found, dict)
    assert found.keys() == TENSORS.keys()
    for name, tensor in found.items():
        assert tensor.dtype == TENSORS[name].dtype, name
        assert tensor.shape == TENSORS[name].shape, name
        assert torch.equal(tensor, TENSORS[name]), name
        tensor.zero_()  # it is ours


def test_a_batch_and_an_error() -> None:
    batch = pack([made_up(1, pictures=2), made_up(2, pictures=1)], CONFIG.image_rows)
    found = through([batch])[0]  # type: ignore[index]
    assert torch.equal(found.pixels, batch.pixels)
    assert torch.equal(found.packed.token_ids, batch.packed.token_ids)
    assert found.records == batch.records
    error = through(DataError("row 7: no answer"))
    assert isinstance(error, DataError)
    assert str(error) == "row 7: no answer"


def test_descriptors_are_given_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        through(TENSORS)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_other_end_is_gone() -> None:
    here, there = socket.socketpair()
    there.close()
    with here, pytest.raises(Gone):
        receive(here)
