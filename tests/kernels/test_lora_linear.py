"""lora_linear reference, forward and backward."""

from __future__ import annotations

import pytest
import torch

from owl_fast.kernels.lora_linear import (
    LoraUpdate,
    fused_linear_reference,
    lora_linear_reference,
    stack_adapters,
)


@pytest.mark.parametrize("tokens", [1, 2, 63])
def test_updates_equal_the_merged_weight(tokens: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((tokens, 24), (31, 24), (31,))
    )
    parts = [(0, 7), (13, 31)]  # rows 7..13 carry no update
    updates, merged = [], weight.clone()
    for start, end in parts:
        a = torch.randn(5, 24, generator=generator, dtype=torch.float64)
        b = torch.randn(end - start, 5, generator=generator, dtype=torch.float64)
        updates.append(LoraUpdate(start, end, a, b, 4.0, 0.0))
        merged[start:end] += 4.0 * b @ a
    out = lora_linear_reference(x, weight, bias, updates)
    assert (out - (x @ merged.T + bias)).abs().max() < 1e-12


def test_adapters_side_by_side_change_their_own_rows() -> None:
    """Of different ranks and parts; the second has no update of this weight."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, weight = random(9, 24), random(31, 24)
    adapters = [
        [LoraUpdate(0, 7, random(5, 24), random(7, 5), 4.0, 0.0)],
        [],
        [
            LoraUpdate(start, end, random(3, 24), random(end - start, 3), 0.5, 0.0)
            for start, end in ((2, 9), (9, 31))
        ],
    ]
    owner = torch.tensor([2, -1, 0, 0, 1, 2, -1, 1, 0], dtype=torch.int32)
    stack = stack_adapters(adapters, 31, torch.float64)._replace(owner=owner)
    found = fused_linear_reference(x, weight, None, stack)
    for row, place in enumerate(owner.tolist()):
        updates = adapters[place] if place >= 0 else []
        wanted = lora_linear_reference(x[row : row + 1], weight, None, updates)[0]
        assert (found[row] - wanted).abs().max() < 1e-12


def test_gradients_reach_x_a_and_b_only() -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = {"x": (3, 6), "a": (2, 6), "b": (4, 2)}
    leaves = {
        name: torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for name, shape in shapes.items()
    }
    weight = torch.randn(9, 6, generator=generator, dtype=torch.float64)

    def run(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return lora_linear_reference(x, weight, None, [LoraUpdate(2, 6, a, b, 0.5, 0.0)])

    assert torch.autograd.gradcheck(run, tuple(leaves.values()))
    assert weight.grad is None


def test_dropout_acts_on_the_update_alone() -> None:
    torch.manual_seed(0)
    x, weight = torch.ones(1, 50), torch.zeros(1, 50)
    update = LoraUpdate(0, 1, torch.ones(1, 50), torch.ones(1, 1), 1.0, 0.5)
    draws = torch.stack([lora_linear_reference(x, weight, None, [update]) for _ in range(200)])
    assert draws.std() > 1.0
    assert abs(draws.mean().item() - 50.0) < 2.0
