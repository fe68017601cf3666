"""The phases of the recipe, and the file each leaves when it is done."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from owl_fast import Engine
from owl_fast.checkpoints import read_tensors, save_model, write_tensors
from owl_fast.checkpoints.manifest import write_manifest
from owl_fast.checkpoints.peft import CONFIG_FILE
from owl_fast.files import read_json, write_json
from owl_fast.images import ImageProcessor
from owl_fast.lora import BASE_FILE, EXTRA_FILE
from owl_fast.models.owl import Owl
from owl_fast.tokenizer import Tokenizer
from owl_fast.training.ranks import Ranks
from recipes.owl_nano import settings
from recipes.owl_nano.card import model_card
from recipes.owl_nano.dialogues import KINDS, SHARES
from recipes.owl_nano.drills import LATER, Curriculum
from recipes.owl_nano.encoding import Encoder
from recipes.owl_nano.evaluate import BATCH, CONTEXT, cases, evaluate
from recipes.owl_nano.held_out import HeldOut
from recipes.owl_nano.initialise import initialise, prepare_abstractor
from recipes.owl_nano.language import exact_matches, gate_sets, train_language
from recipes.owl_nano.pool import SHARD, Pool, draw_pool
from recipes.owl_nano.scoring import ablation_table, acceptance_table
from recipes.owl_nano.stages import train_stage
from recipes.owl_nano.training_files import write_data
from recipes.owl_nano.vocabulary import corpus, train_vocabulary
from recipes.owl_nano.warmup import warm_up

TIMES = "seconds.json"  # how long each phase took
RESULTS = {
    "vocabulary": "tokenizer.model",
    "language": "language.pt",
    "gate": "gate.json",
    "pictures": "pictures/done",
    "warmup": "warmup.pt",
    "data": "data/done",
    "stage1": "stage1/final/config.json",
    "stage2": "stage2/final/adapter_config.json",
    "merge": "owl-nano/config.json",
    "evaluate": "accuracy.json",
    "ablation": "ablation.json",
}
SHARED = ("pictures", "warmup", "language")  # several processes do these phases together
ON_REQUEST = ("ablation",)
STAGE1_SHARES = {"captions": 0.4, "questions": 0.6}
STAGE2_SHARES = dict(zip(KINDS, SHARES, strict=True))
GATE = 0.97  # exact answers in text alone, of every kind


def merge_adapter(folder: Path, out: Path, dtype: str = "fp32") -> None:
    """What stage 2 left in `folder` as a model, summed in float32."""
    with TemporaryDirectory() as whole:
        Engine.from_pretrained(folder, device="cpu", dtype="fp32").save_pretrained(whole, adapter="default")
        Engine.from_pretrained(whole, device="cpu", dtype=dtype).save_pretrained(out)


class Phases:
    """Each phase is a method that reads and writes files of one folder.

    processes: that the training command starts; ranks: that this one is among.
    """

    def __init__(self, out: Path, scale: float, processes: int, ranks: Ranks) -> None:
        self.out, self.scale, self.processes, self.ranks = out, scale, processes, ranks
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

    def _load(self, name: str) -> Owl:
        model = self._model()
        model.load_state_dict(torch.load(self.out / name))
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

    def data(self) -> None:
        """Training files of both stages, and start/: LLaMA and tower as their phases left them."""
        folder = self.out / "data"
        counts = {}
        for schedule, shares in ((settings.STAGE1, STAGE1_SHARES), (settings.STAGE2, STAGE2_SHARES)):
            steps = self._steps(schedule)
            for name, share in shares.items():
                counts[name] = max(1, round(share * steps.steps * steps.batch))
        write_data(Pool(self.out / "pictures"), folder, counts, settings.SEED)
        model = self._load("language.pt")
        model.vision_model.load_state_dict(torch.load(self.out / "warmup.pt"))
        prepare_abstractor(model, self.encoder, settings.SEED)
        shutil.rmtree(self.out / "start", ignore_errors=True)
        save_model(
            model,
            self.out / "start",
            tokenizer=(self.out / "tokenizer.model").read_bytes(),
            preprocessor=ImageProcessor(settings.IMAGE_SIDE).to_dict(),
        )
        (folder / "done").touch()

    def stage1(self) -> None:
        self._train(1, "start", settings.STAGE1, STAGE1_SHARES, "stage1")

    def stage2(self) -> None:
        self._train(2, "stage1/final", settings.STAGE2, STAGE2_SHARES, "stage2")

    def _train(
        self, stage: int, model: str, schedule: settings.Schedule, kinds: Iterable[str], out: str
    ) -> None:
        folder = self.out / "data"
        data, held_out = (
            [folder / f"{prefix}{name}.jsonl" for name in kinds] for prefix in ("", "held-out-")
        )
        train_stage(
            stage, self.out / model, data, held_out, self.out / out, self._steps(schedule), self.processes
        )

    def ablation(self) -> None:
        """The paper's comparison in small: what each stage and each kind of instruction is worth."""
        held_out = HeldOut(self.encoder, 100, settings.SEED + 5)
        rates = {}
        for name, start, kinds in (
            ("full", "stage1/final", tuple(STAGE2_SHARES)),
            ("no stage 1", "start", tuple(STAGE2_SHARES)),
            ("no stage 2", "stage1/final", ()),
            ("text only", "stage1/final", ("text",)),
            ("multimodal only", "stage1/final", ("picture", "pair")),
        ):
            with TemporaryDirectory() as merged:
                folder = self.out / start
                if kinds:
                    run = "stage2" if name == "full" else f"ablation/{name}"
                    self._train(2, start, settings.STAGE2, kinds, run)
                    folder = Path(merged)
                    merge_adapter(self.out / run / "final", folder)
                rates[name] = held_out(Engine.from_pretrained(folder, device="cpu", dtype="fp32").model)
        write_json(self.out / "ablation.json", rates)
        print(ablation_table(rates))

    def _save(self, model: nn.Module, name: str) -> None:
        if self.ranks.leads:
            torch.save(model.state_dict(), self.out / name)

    def merge(self) -> None:
        folder, trained = self.out / "owl-nano", self.out / "stage2/final"
        shutil.rmtree(folder, ignore_errors=True)
        merge_adapter(trained, folder, "bf16")
        adapter = shutil.copytree(trained, folder / "adapter")
        extra = read_tensors(adapter / EXTRA_FILE)
        write_tensors(adapter / EXTRA_FILE, {name: t.to(torch.bfloat16) for name, t in extra.items()})
        for file, key in ((BASE_FILE, "name"), (CONFIG_FILE, "base_model_name_or_path")):
            write_json(adapter / file, read_json(adapter / file) | {key: "owl-nano, stage 1"})
        for changed in (adapter, folder):
            write_manifest(changed)

    def evaluate(self) -> None:
        report = {}
        model = self.out / "owl-nano"
        engine = Engine.from_pretrained(model, device="cpu", max_context=CONTEXT, max_batch=BATCH)
        for drawing in ("own", "blind"):
            report[drawing] = evaluate(engine, drawing, cases(drawing, 200, 1))
            print(f"\n{drawing}\n{acceptance_table(report[drawing])}", flush=True)
        seconds = read_json(self.out / TIMES)
        card = model_card(report["own"], report["blind"], seconds)
        (self.out / "owl-nano" / "README.md").write_text(card, encoding="utf-8")
        write_json(self.out / "accuracy.json", report)
