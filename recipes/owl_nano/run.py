"""Makes owl-nano from nothing: `python -m recipes.owl_nano.run [--out DIR]`, or `make nano`.

| phase | what happens | leaves in DIR |
|---|---|---|
| vocabulary | SentencePiece on generated text | tokenizer.model |
| language | the LLaMA learns look-ups, then conversations, without eyes | language/, language.pt |
| gate | every kind of question in text alone | gate.json |
| pictures | the pool of training pictures is drawn | pictures/ |
| warmup | the vision tower learns to name what lies under each patch | warmup/, warmup.pt |
| stage1 | vision tower + abstractor, LLaMA frozen: captions and statements | stage1/, stage1.pt |
| stage2 | LoRA + abstractor, vision tower frozen: conversations | stage2/, adapter/ |
| merge | the bundled folder in bf16 | owl-nano/ |
| evaluate | both drawing programs, the engine answering | accuracy.json |

A phase whose result is there is skipped; delete the result to repeat it, or name the phase with --only.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from owl_fast.checkpoints import save_model
from owl_fast.images import ImageProcessor
from owl_fast.lora import merge_, save_adapter
from owl_fast.models.owl import Owl
from owl_fast.prompts import TextPiece
from owl_fast.tokenizer import Tokenizer
from owl_fast.training.ranks import Ranks
from recipes.owl_nano import settings
from recipes.owl_nano.dialogues import sample_dialogue, training_scene
from recipes.owl_nano.drills import Curriculum
from recipes.owl_nano.encoding import Encoder, pieces
from recipes.owl_nano.evaluate import evaluate
from recipes.owl_nano.held_out import HeldOut
from recipes.owl_nano.initialise import initialise
from recipes.owl_nano.language import exact_matches, gate_sets, train_language
from recipes.owl_nano.parallel import join
from recipes.owl_nano.picture_stages import LORA, STAGE1, prepare_abstractor, stage2, train_stage
from recipes.owl_nano.pool import Pool, draw_pool
from recipes.owl_nano.scoring import acceptance_table
from recipes.owl_nano.sources import PictureSamples, stage1_sources, stage2_sources
from recipes.owl_nano.statements import statements
from recipes.owl_nano.vocabulary import train_vocabulary
from recipes.owl_nano.warmup import warm_up
from recipes.owl_nano.world import caption

GATE = 0.97


class Run:
    """The phases, each a method that reads and writes files of one folder."""

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
        train_vocabulary(_corpus(settings.SEED, settings.CORPUS_DIALOGUES), self.out / "tokenizer.model")

    def pictures(self) -> None:
        folder, shards = self.out / "pictures", max(1, round(settings.SHARDS * self.scale))
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
        for name, drills, schedule in (
            ("drills", 1.0, settings.DRILLS),
            ("text", settings.DRILL_SHARE, settings.TEXT),
        ):
            folder = self.out / "language" / name
            train_language(
                model, self.encoder, self._steps(schedule), drills, folder, settings.SEED, curriculum
            )
        self._save(model, "language.pt")

    def gate(self) -> None:
        model = self._model()
        model.load_state_dict(torch.load(self.out / "language.pt"))
        rates = {
            kind: {
                t: exact_matches(model, s)
                for t, s in gate_sets(self.encoder, 200, 99, kind == "rows").items()
            }
            for kind in ("rows", "text")
        }
        (self.out / "gate.json").write_text(json.dumps(rates, indent=1) + "\n", encoding="utf-8")
        low = {t: r for t, r in rates["rows"].items() if r < GATE}
        print(f"gate {GATE}: " + (f"below it are {low}" if low else "every kind of question is above it"))

    def stage1(self) -> None:
        model = self._model()
        model.load_state_dict(torch.load(self.out / "language.pt"))
        model.vision_model.load_state_dict(torch.load(self.out / "warmup.pt"))
        prepare_abstractor(model, self.encoder, settings.SEED)
        samples = PictureSamples(self.encoder, Pool(self.out / "pictures"))
        sources = stage1_sources(samples, settings.SEED)
        self._train(model, STAGE1, sources, settings.STAGE1, "stage1")
        self._save(model, "stage1.pt")

    def stage2(self) -> None:
        model = self._model()
        model.load_state_dict(torch.load(self.out / "stage1.pt"))
        samples = PictureSamples(self.encoder, Pool(self.out / "pictures"))
        stage = stage2(LORA)
        self._train(model, stage, stage2_sources(samples, settings.SEED), settings.STAGE2, "stage2")
        if self.ranks.leads:
            extra = stage.checkpoint_names(model)
            save_adapter(model, self.out / "adapter", LORA, base="owl-nano, stage 1", extra=extra)
        merge_(model)
        self._save(model, "stage2.pt")

    def _train(self, model, stage, sources, schedule, name) -> None:
        held_out = HeldOut(self.encoder, 40, settings.SEED + 5) if self.ranks.leads else None
        train_stage(
            model,
            stage,
            sources,
            self._steps(schedule),
            self.out / name,
            settings.SEED,
            held_out,
        )

    def _save(self, model: nn.Module, name: str) -> None:
        if self.ranks.leads:
            torch.save(model.state_dict(), self.out / name)

    def merge(self) -> None:
        model = self._model()
        model.load_state_dict(torch.load(self.out / "stage2.pt"))
        folder = self.out / "owl-nano"
        save_model(model.to(torch.bfloat16), folder)
        (folder / "tokenizer.model").write_bytes((self.out / "tokenizer.model").read_bytes())
        processor = ImageProcessor(settings.IMAGE_SIDE).to_dict()
        (folder / "preprocessor_config.json").write_text(
            json.dumps(processor, indent=2) + "\n", encoding="utf-8"
        )

    def evaluate(self) -> None:
        report = {}
        for drawing in ("own", "blind"):
            report[drawing] = evaluate(self.out / "owl-nano", drawing, 200, 1)
            print(f"\n{drawing}\n{acceptance_table(report[drawing])}", flush=True)
        (self.out / "accuracy.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


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
}
# Phases that several processes share; the others run in one.
SHARED = ("pictures", "warmup", "language", "stage1", "stage2")


def _corpus(seed: int, count: int) -> Iterator[str]:
    """Every kind of text that the vocabulary has to carry."""
    rng = random.Random(seed)
    for _ in range(count):
        dialogue = sample_dialogue(rng, lambda: training_scene(rng))
        for form in ("chat", "training"):
            yield from (piece.text for piece in pieces(dialogue, form) if isinstance(piece, TextPiece))
        for scene in dialogue.scenes:
            yield caption(scene)
            for _, sentence in statements(rng, scene, 3):
                yield " ".join(text for text, _ in sentence).replace(" .", ".")


def run_phase(name: str, options: argparse.Namespace) -> None:
    """One phase, in as many processes as may share it; a failed process ends the run."""
    count = options.processes if name in SHARED else 1
    meeting = options.out / f"{name}.meeting"
    meeting.unlink(missing_ok=True)
    command = [sys.executable, "-m", "recipes.owl_nano.run", "--out", str(options.out), "--phase", name]
    command += ["--steps-scale", str(options.steps_scale), "--processes", str(count)]
    running = [subprocess.Popen([*command, "--rank", str(rank)]) for rank in range(count)]
    if any(process.wait() for process in running):
        raise SystemExit(f"phase {name} failed; what went before is kept in {options.out}")
    meeting.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("nano-run"),
        help="folder for everything; a run goes on where it ended",
    )
    parser.add_argument(
        "--only", choices=tuple(RESULTS), help="this phase alone, also if its result is there"
    )
    parser.add_argument("--steps-scale", type=float, default=1.0, help="multiplies every number of steps")
    parser.add_argument("--processes", type=int, default=2, help="one-thread processes of a phase")
    parser.add_argument("--phase", choices=tuple(RESULTS), help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.phase is not None:
        ranks = join(options.rank, options.processes, options.out / f"{options.phase}.meeting")
        phase: Callable[[], None] = getattr(Run(options.out, options.steps_scale, ranks), options.phase)
        phase()
        ranks.wait()
        return
    options.out.mkdir(parents=True, exist_ok=True)
    for name, result in RESULTS.items():
        if options.only == name or (options.only is None and not (options.out / result).exists()):
            print(f"== {name}", flush=True)
            run_phase(name, options)


if __name__ == "__main__":
    main()
