"""The abstractor's folded keys and values: the same numbers, and never those of older weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from owl_fast import lora, ops
from owl_fast.engine.adapters import Adapters
from owl_fast.lora import Adapter, LoraConfig
from owl_fast.models import folded
from owl_fast.models.layers import LayerNorm, Linear, LoraPair, init_weights
from owl_fast.models.owl import Owl
from tests.golden_data import Golden
from tests.tolerances import ACTIVATION

E, P, LAYERS = 12, 5, 3
EPS = 1e-5


@pytest.fixture
def layers() -> tuple[list[LayerNorm], list[Linear]]:
    norms = [LayerNorm(E, EPS) for _ in range(LAYERS)]
    linears = [Linear(E, (E, E)) for _ in range(LAYERS)]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (p for module in (*norms, *linears) for p in module.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return norms, linears


def image(dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(2, P, E, generator=torch.Generator().manual_seed(1)) * 3 + 1).to(dtype)


def add_lora(linear: Linear, part: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, E, generator=generator), torch.randn(E, 2, generator=generator)
    linear.lora[part] = LoraPair(a, b, 0.5, 0.1)
    linear.lora_rows[part] = {"key": (0, E), "value": (E, 2 * E)}[part]


def check(fold: folded.FoldedProjections, norms: list[LayerNorm], linears: list[Linear]) -> None:
    with torch.inference_mode():
        for ours, norm, linear in zip(fold(norms, linears, image()), norms, linears, strict=True):
            theirs = linear.eval()(norm(image()))
            assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_fold_is_exact_in_the_wide(layers: tuple[list[LayerNorm], list[Linear]]) -> None:
    (norm, *_), (linear, *_) = layers
    add_lora(linear, "value", 3)
    weight, bias = folded.fold(norm, linear)
    assert weight.dtype == bias.dtype == torch.float32
    merged = linear.weight.double()
    pair = linear.lora["value"]
    merged[E:] += 0.5 * pair.lora_B.double() @ pair.lora_A.double()
    normed = torch.randn(7, E, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    exact = (normed * norm.weight.double() + norm.bias.double()) @ merged.T + linear.bias.double()
    assert (normed @ weight.double().T + bias.double() - exact).abs().max() < 1e-5


def test_half_precision_is_folded_in_float32(layers: tuple[list[LayerNorm], list[Linear]]) -> None:
    """Products are rounded once: folding in bfloat16 would be off by the norm's rounding too."""
    norms, linears = ([module.bfloat16() for module in modules] for modules in layers)
    fold = folded.FoldedProjections()
    fold.refresh(norms, linears)
    exact = torch.cat([n.weight.double() * x.weight.double() for n, x in zip(norms, linears, strict=True)])
    assert torch.equal(fold._weight, exact.float().bfloat16())
    rows = image(torch.bfloat16)
    with torch.inference_mode():
        for ours, norm, linear in zip(fold(norms, linears, rows), norms, linears, strict=True):
            wide_norm, wide_linear = (copy.deepcopy(module).double() for module in (norm, linear))
            exact, theirs = wide_linear(wide_norm(rows.double())), linear(norm(rows))
            assert (ours - exact).abs().max() <= 1.5 * (theirs - exact).abs().max()


def change_scale(norms: list[LayerNorm], linears: list[Linear]) -> None:
    norms[1].weight.mul_(2)


def change_through_a_view(norms: list[LayerNorm], linears: list[Linear]) -> None:
    linears[2].weight.detach().narrow(0, E, E).copy_(torch.ones(E, E))


def change_bias_in_inference(norms: list[LayerNorm], linears: list[Linear]) -> None:
    with torch.inference_mode():
        linears[0].bias.add_(1)


def load(norms: list[LayerNorm], linears: list[Linear]) -> None:
    linears[0].load_state_dict({"weight": torch.ones(2 * E, E), "bias": torch.ones(2 * E)})


def assign(norms: list[LayerNorm], linears: list[Linear]) -> None:
    state = {"weight": torch.ones(E), "bias": torch.ones(E)}
    norms[0].load_state_dict(state, assign=True)


def narrow_and_widen(norms: list[LayerNorm], linears: list[Linear]) -> None:
    """The same parameter, the same version, perhaps the same address as before."""
    linears[1].weight.data = linears[1].weight.data.bfloat16()
    linears[1].weight.data = linears[1].weight.data.float()


def step(norms: list[LayerNorm], linears: list[Linear]) -> None:
    parameter = linears[1].weight
    parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW([parameter], lr=0.5).step()


def attach(norms: list[LayerNorm], linears: list[Linear]) -> None:
    add_lora(linears[1], "key", 7)


CHANGES = (
    change_scale,
    change_through_a_view,
    change_bias_in_inference,
    load,
    assign,
    narrow_and_widen,
    step,
    attach,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changes_are_seen(
    layers: tuple[list[LayerNorm], list[Linear]], change: Callable[[list[LayerNorm], list[Linear]], None]
) -> None:
    fold = folded.FoldedProjections()
    check(fold, *layers)
    before = fold._weight.clone(), fold._bias.clone()
    address = fold._weight.data_ptr()
    with torch.no_grad():
        change(*layers)
    check(fold, *layers)
    assert not (torch.equal(before[0], fold._weight) and torch.equal(before[1], fold._bias))
    assert fold._weight.data_ptr() == address  # captured graphs go on


def test_every_state_of_an_adapter_is_seen(layers: tuple[list[LayerNorm], list[Linear]]) -> None:
    norms, linears = layers
    fold = folded.FoldedProjections()
    for seed in range(5):  # pairs come and go, and their memory with them
        add_lora(linears[0], "key", seed)
        check(fold, norms, linears)
    linears[0].lora["key"].scale = 2.0
    check(fold, norms, linears)
    with torch.no_grad():
        linears[0].lora["key"].lora_B.zero_()
    check(fold, norms, linears)
    del linears[0].lora["key"], linears[0].lora_rows["key"]
    check(fold, norms, linears)


def test_weights_made_in_inference_mode_do_not_tell_and_are_read_again() -> None:
    with torch.inference_mode():
        norms, linears = [LayerNorm(E, EPS)], [Linear(E, (E, E))]
        init_weights(linears[0], seed=0)
        init_weights(norms[0], seed=0)
        fold = folded.FoldedProjections()
        check(fold, norms, linears)
        linears[0].weight.add_(1)
        check(fold, norms, linears)


def test_unchanged_weights_are_folded_once(
    layers: tuple[list[LayerNorm], list[Linear]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fold = folded.FoldedProjections()
    check(fold, *layers)
    monkeypatch.setattr(folded, "fold", lambda *_: pytest.fail("folded again"))
    check(fold, *layers)


def test_a_copy_of_the_model_has_its_own(layers: tuple[list[LayerNorm], list[Linear]]) -> None:
    fold = folded.FoldedProjections()
    check(fold, *layers)
    theirs, norms, linears = copy.deepcopy((fold, *layers))
    with torch.no_grad():
        linears[0].weight.zero_()
    check(theirs, norms, linears)
    check(fold, *layers)


# --- in the model ---


@pytest.fixture
def by_kernels() -> Iterator[None]:
    with ops.kernels(True):
        yield


def model_and_features(device: torch.device) -> tuple[Owl, Tensor]:
    golden = Golden("micro")
    features = golden.tensors("vision")["vision.last_hidden_state"][:1]
    return golden.fresh_model().to(device), features.to(device)


def folds(model: Owl) -> bool:
    return len(model.abstractor.encoder._folded._read) > 0


@pytest.mark.usefixtures("by_kernels")
def test_an_engines_adapter_switch_is_seen(device: torch.device) -> None:
    model, features = model_and_features(device)
    layer = "abstractor.encoder.layers.1.crossattention"
    width = model.config.abstractor.hidden_size
    config = LoraConfig.from_dict({"r": 2, "lora_alpha": 8, "target_modules": r".*attention\.value"})
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(2, width, generator=generator), torch.randn(width, 2, generator=generator)
    scale = torch.randn(width, generator=generator)
    adapters = Adapters(model, None)
    trained = Adapter(config, {f"{layer}.attention.value": pair}, {f"{layer}.normk.weight": scale})
    trained = trained.to(device, torch.float32)
    states = []
    for adapter in (None, trained, None, trained):
        adapters.outside.use(adapter)
        with torch.inference_mode():
            states.append(model.abstract(features))
        with torch.enable_grad():
            plain = model.abstract(features)
        assert (states[-1] - plain).abs().max() < ACTIVATION
    assert (states[0] - states[1]).abs().max() > 100 * ACTIVATION
    assert torch.equal(states[0], states[2])
    assert torch.equal(states[1], states[3])
    lora.merge_(model)
    with torch.inference_mode():
        assert (model.abstract(features) - states[1]).abs().max() < ACTIVATION


@pytest.mark.usefixtures("by_kernels")
def test_training_does_not_fold(device: torch.device) -> None:
    model, features = model_and_features(device)
    model.abstract(features)
    assert not folds(model)
    with torch.no_grad():
        model.train().abstract(features)
        assert not folds(model)
        model.eval().abstract(features)
        assert folds(model)
    assert not any("folded" in name for name in model.state_dict())


def test_the_reference_path_does_not_fold(device: torch.device) -> None:
    model, features = model_and_features(device)
    with torch.inference_mode(), ops.kernels(False):
        model.abstract(features)
    assert not folds(model)
