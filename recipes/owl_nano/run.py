"""Makes owl-nano from nothing: `python -m recipes.owl_nano.run [--out DIR]`, or `make nano`.

| phase | what happens | leaves in DIR |
|---|---|---|
| vocabulary | SentencePiece on generated text | tokenizer.model |
| language | the LLaMA learns look-ups, then conversations, without eyes | language/, language.pt |
| gate | every kind of question in text alone | gate.json |
| pictures | the pool of training pictures is drawn | pictures/ |
| warmup | the vision tower learns to name what lies under each patch | warmup/, warmup.pt |
| data | training files of both stages, and the model to begin with | data/, start/ |
| stage1 | `owl_fast.train`: vision tower + abstractor, LLaMA frozen | stage1/ |
| stage2 | `owl_fast.train`: LoRA + abstractor, vision tower frozen | stage2/ |
| merge | the folder to bundle, in bf16 | owl-nano/ |
| evaluate | both drawing programs, the engine answering | accuracy.json |
| ablation | only on request: stage 2 without stage 1, on text only, on pictures only | ablation.json |

A phase whose result is there is skipped; delete the result to repeat it, or name the phase with --only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from owl_fast.files import read_json, write_json
from recipes.owl_nano.parallel import join
from recipes.owl_nano.phases import ON_REQUEST, RESULTS, SHARED, TIMES, Phases


def run_phase(name: str, options: argparse.Namespace) -> None:
    """One phase, in as many processes as may share it; a failed process ends the run."""
    count = options.processes if name in SHARED else 1
    meeting = options.out / f"{name}.meeting"
    meeting.unlink(missing_ok=True)
    command = [sys.executable, "-m", "recipes.owl_nano.run", "--out", str(options.out), "--phase", name]
    command += ["--steps-scale", str(options.steps_scale), "--processes", str(options.processes)]
    begin = time.monotonic()
    running = [subprocess.Popen([*command, "--rank", str(rank)]) for rank in range(count)]
    if any(process.wait() for process in running):
        raise SystemExit(f"phase {name} failed; what went before is kept in {options.out}")
    meeting.unlink(missing_ok=True)
    times = options.out / TIMES
    seconds = read_json(times) if times.exists() else {}
    write_json(times, seconds | {name: round(seconds.get(name, 0) + time.monotonic() - begin)})


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
        count = options.processes if options.phase in SHARED else 1
        ranks = join(options.rank, count, options.out / f"{options.phase}.meeting")
        phases = Phases(options.out, options.steps_scale, options.processes, ranks)
        getattr(phases, options.phase)()
        ranks.wait()
        return
    options.out.mkdir(parents=True, exist_ok=True)
    for name, result in RESULTS.items():
        due = name not in ON_REQUEST and not (options.out / result).exists()
        if options.only == name or (options.only is None and due):
            print(f"== {name}", flush=True)
            run_phase(name, options)


if __name__ == "__main__":
    main()
