"""What trains in which stage, and what is refused."""

from __future__ import annotations

import pytest
import torch

from owl_fast import lora
from owl_fast.errors import UnsupportedError
from owl_fast.lora import LoraConfig
from owl_fast.training import FULL_LLAMA, STAGE1, Stage, pack, stage2
from owl_fast.training.objective import token_loss
from tests.training.owls import ROWS, made_up, small_owl


def parts(names: list[str]) -> set[str]:
    return {"lora" if ".lora." in name else name.split(".")[0] for name in names}


@pytest.mark.parametrize(
    ("stage", "wanted"),
    [
        (STAGE1, {"vision_model", "abstractor", "query_tokens"}),
        (stage2(), {"lora", "abstractor", "query_tokens"}),
        (stage2(train_abstractor=False), {"lora"}),
        (FULL_LLAMA, {"language_model"}),
    ],
    ids=["stage1", "stage2", "stage2-lora-alone", "full"],
)
def test_what_trains(stage: Stage, wanted: set[str]) -> None:
    model = small_owl()
    trained = stage.apply(model)
    assert parts(list(trained)) == wanted
    token_loss(model, pack([made_up(0, pictures=1)], ROWS)).backward()
    moved = [name for name, p in model.named_parameters() if p.grad is not None]
    assert moved == list(trained)


def test_targets_may_be_a_list() -> None:
    trained = stage2(LoraConfig(target_modules=("k_proj", "down_proj")), train_abstractor=False).apply(
        small_owl()
    )
    assert {name.split(".")[-2] for name in trained} == {"k_proj", "down_proj"}


def test_a_frozen_tower_records_nothing() -> None:
    model = small_owl()
    stage2().apply(model)
    seen = []
    model.vision_model.register_forward_hook(lambda _m, _a, out: seen.append(out.requires_grad))
    batch = pack([made_up(0, pictures=1)], ROWS)
    token_loss(model, batch)
    STAGE1.apply(model)
    token_loss(model, batch)
    assert seen == [False, True]


def test_a_trained_tower_takes_no_cached_features() -> None:
    model = small_owl()
    STAGE1.apply(model)
    with pytest.raises(UnsupportedError, match="made-up 0: cached"):
        token_loss(model, pack([made_up(0, pictures=1, features=True)], ROWS))


def test_an_adapter_that_is_there_goes_on() -> None:
    model = small_owl()
    lora.attach(model, LoraConfig(), seed=3)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if ".lora." in name}
    trained = stage2().apply(model, seed=4)
    assert all(torch.equal(trained[name], value) for name, value in before.items())
    with pytest.raises(UnsupportedError, match="carries an adapter"):
        stage2(LoraConfig(target_modules=("k_proj",))).apply(model)


def test_refused() -> None:
    with pytest.raises(UnsupportedError, match="lm_head"):
        stage2(LoraConfig(target_modules=("lm_head",))).apply(small_owl())
    with pytest.raises(UnsupportedError, match="no parameter"):
        Stage("odd", ("nothing.",)).apply(small_owl())


def test_checkpoint_names_are_those_of_an_adapter_folder() -> None:
    model = small_owl()
    stage = stage2()
    stage.apply(model)
    names = stage.checkpoint_names(model)
    assert "abstractor.encoder.layers.0.crossattention.attention.key.weight" in names
    assert {"query_tokens", "abstractor.vit_eos"} <= set(names)
    assert not any("lora" in name or "language_model" in name for name in names)


def test_what_trains_is_float32() -> None:
    model = small_owl(dtype=torch.bfloat16)
    trained = stage2().apply(model)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert model.language_model.lm_head.weight.dtype == torch.bfloat16
