"""The phases of the recipe, and the file each leaves when it is done."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from owl_fast.checkpoints import read_tensors, save_model, weights_sha256, write_tensors
from owl_fast.checkpoints.manifest import write_manifest
from owl_fast.files import read_json, write_json
from owl_fast.images import ImageProcessor
from owl_fast.lora import EXTRA_FILE, Base, merge_, save_adapter
from owl_fast.models.owl import Owl
from owl_fast.tokenizer import Tokenizer
from owl_fast.training.ranks import Ranks
from recipes.owl_nano import settings
from recipes.owl_nano.card import model_card
from recipes.owl_nano.dialogues import SHARES
from recipes.owl_nano.drills import LATER, Curriculum
from recipes.owl_nano.encoding import Encoder
from recipes.owl_nano.evaluate import evaluate
from recipes.owl_nano.held_out import HeldOut
from recipes.owl_nano.initialise import initialise
from recipes.owl_nano.language import exact_matches, gate_sets, train_language
from recipes.owl_nano.picture_stages import LORA, STAGE1, prepare_abstractor, stage2, train_stage
from recipes.owl_nano.pool import SHARD, Pool, draw_pool
from recipes.owl_nano.scoring import ablation_table, acceptance_table
from recipes.owl_nano.sources import PictureSamples, stage1_sources, stage2_sources
from recipes.owl_nano.vocabulary import corpus, train_vocabulary
from recipes.owl_nano.warmup import warm_up

TIMES = "seconds.json"  # how long each phase took
RESULTS = {
    "vocabulary": "tokenizer.model",
    "language": "language.pt",
    "gate": "gate.json",
    "pictures": "pictures/done",
    "warmup": "warmup.pt",
    "stage1": "stage1.pt",
    "stage2": "stage2.pt",
    "merge": "owl-nano/config.json",
    "evaluate": "accuracy.json",
    "ablation": "ablation.json",
}
# Phases that several processes share; the others run in one.
SHARED = ("pictures", "warmup", "language", "stage1", "stage2", "ablation")
ON_REQUEST = ("ablation",)
GATE = 0.97  # exact answers in text alone, of every kind


def base_of(model: Owl) -> Base:
    """What an adapter trained on this model says of it, by the files the model would have."""
    with TemporaryDirectory() as folder:
        save_model(model, folder)
        return Base("owl-nano, stage 1", weights_sha256(folder))


class Phases:
    """Each phase is a method that reads and writes files of one folder."""

    def __init__(self, out: Path, scale: float, ranks: Ranks) -> None:
        self.out, self.scale, self.ranks = out, scale, ranks
        out.mkdir(parents=True, exist_ok=True)

    def _steps(self, schedule: settings.Schedule) -> settings.Schedule:
        return schedule.scaled(self.scale)

    @property
    def encoder(self) -> Encoder:
        return Encoder(Tokenizer.from_file(self.out / "tokenizer.model"))

    def _model(self) -> Owl:
        model = Owl(settings.CONFIG)
        initialise(model, settings.SEED)
        return model

    def vocabulary(self) -> None:
        train_vocabulary(corpus(settings.SEED, settings.CORPUS_DIALOGUES), self.out / "tokenizer.model")

    def pictures(self) -> None:
        folder, shards = self.out / "pictures", max(1, round(settings.PICTURES * self.scale / SHARD))
        draw_pool(folder, range(self.ranks.rank, shards, self.ranks.size), settings.SEED)
        self.ranks.wait()
        (folder / "done").touch()

    def warmup(self) -> None:
        model = self._model()
        pool = Pool(self.out / "pictures")
        warm_up(model, pool, self._steps(settings.WARMUP), self.out / "warmup", settings.SEED)
        self._save(model.vision_model, "warmup.pt")

    def language(self) -> None:
        model, curriculum = self._model(), Curriculum()
        for name, drills, schedule, directions, seed in (
            ("drills", 1.0, settings.DRILLS, (), settings.SEED),
            ("text", settings.DRILL_SHARE, settings.TEXT, (), settings.SEED),
            ("later1", settings.LATER_DRILL_SHARE, settings.LATER, LATER, settings.SEED + 1),
            ("later2", settings.LATER_DRILL_SHARE, settings.LATER, LATER, settings.SEED + 2),
        ):
            curriculum.include(directions)
            folder = self.out / "language" / name
            train_language(model, self.encoder, self._steps(schedule), drills, folder, seed, curriculum)
        self._save(model, "language.pt")

    def gate(self) -> None:
        model = self._load("language.pt")
        rates = {
            kind: {
                t: exact_matches(model, s)
                for t, s in gate_sets(self.encoder, 200, 99, kind == "rows").items()
            }
            for kind in ("rows", "text")
        }
        write_json(self.out / "gate.json", rates)
        low = {t: r for t, r in rates["rows"].items() if r < GATE}
        print(f"gate {GATE}: " + (f"below it are {low}" if low else "every kind of question is above it"))

    def stage1(self) -> None:
        model = self._before_stage1()
        sources = stage1_sources(self._samples(), settings.SEED)
        folder, held_out = self.out / "stage1", self._held_out(40)
        train_stage(model, STAGE1, sources, self._steps(settings.STAGE1), folder, settings.SEED, held_out)
        self._save(model, "stage1.pt")

    def stage2(self) -> None:
        model = self._load("stage1.pt")
        base = base_of(model) if self.ranks.leads else None
        self._instruct(model, "stage2", SHARES)
        if base is not None:
            extra = stage2(LORA).checkpoint_names(model)
            save_adapter(model, self.out / "adapter", LORA, base=base, extra=extra)
        merge_(model)
        self._save(model, "stage2.pt")

    def ablation(self) -> None:
        """The paper's comparison in small: what each stage and each kind of instruction is worth."""
        picture, pair, text = SHARES
        held_out = self._held_out(100)
        rates = {}
        for name, start, shares in (
            ("full", "stage2.pt", None),
            ("no stage 1", None, SHARES),
            ("no stage 2", "stage1.pt", None),
            ("text only", "stage1.pt", (0.0, 0.0, text)),
            ("multimodal only", "stage1.pt", (picture, pair, 0.0)),
        ):
            model = self._load(start) if start else self._before_stage1()
            if shares is not None:
                self._instruct(model, f"ablation/{name}", shares)
            if self.ranks.leads:
                rates[name] = held_out(model.eval(), 0)
            self.ranks.wait()
        if self.ranks.leads:
            write_json(self.out / "ablation.json", rates)
            print(ablation_table(rates))

    def _load(self, name: str) -> Owl:
        model = self._model()
        model.load_state_dict(torch.load(self.out / name))
        return model

    def _before_stage1(self) -> Owl:
        """LLaMA and tower as their own phases left them, the abstractor untrained."""
        model = self._load("language.pt")
        model.vision_model.load_state_dict(torch.load(self.out / "warmup.pt"))
        prepare_abstractor(model, self.encoder, settings.SEED)
        return model

    def _instruct(self, model: Owl, name: str, shares: tuple[float, float, float]) -> None:
        """Stage 2 on conversations about one picture, two and none in these shares."""
        sources = stage2_sources(self._samples(), settings.SEED, shares)
        folder, held_out = self.out / name, self._held_out(40)
        train_stage(
            model, stage2(LORA), sources, self._steps(settings.STAGE2), folder, settings.SEED, held_out
        )

    def _samples(self) -> PictureSamples:
        return PictureSamples(self.encoder, Pool(self.out / "pictures"))

    def _held_out(self, per_task: int) -> HeldOut:
        return HeldOut(self.encoder, per_task, settings.SEED + 5)

    def _save(self, model: nn.Module, name: str) -> None:
        if self.ranks.leads:
            torch.save(model.state_dict(), self.out / name)

    def merge(self) -> None:
        folder = self.out / "owl-nano"
        save_model(self._load("stage2.pt").to(torch.bfloat16), folder)
        (folder / "tokenizer.model").write_bytes((self.out / "tokenizer.model").read_bytes())
        write_json(folder / "preprocessor_config.json", ImageProcessor(settings.IMAGE_SIDE).to_dict())
        adapter = shutil.copytree(self.out / "adapter", folder / "adapter")
        extra = read_tensors(adapter / EXTRA_FILE)
        write_tensors(adapter / EXTRA_FILE, {name: t.to(torch.bfloat16) for name, t in extra.items()})
        for changed in (adapter, folder):
            write_manifest(changed)

    def evaluate(self) -> None:
        report = {}
        for drawing in ("own", "blind"):
            report[drawing] = evaluate(self.out / "owl-nano", drawing, 200, 1)
            print(f"\n{drawing}\n{acceptance_table(report[drawing])}", flush=True)
        seconds = read_json(self.out / TIMES)
        card = model_card(report["own"], report["blind"], seconds)
        (self.out / "owl-nano" / "README.md").write_text(card, encoding="utf-8")
        write_json(self.out / "accuracy.json", report)
