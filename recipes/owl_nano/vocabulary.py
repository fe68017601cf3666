"""The SentencePiece vocabulary: byte pairs over the recipe's own text, with byte fallback and split digits.

The words of the world are single pieces wherever they stand. Capital letters are always pieces of their own,
so a printed word is spelled letter by letter ("▁ S T O P"): reading is recognising characters, one after the
other, and no word is cut differently from another. Words that begin with a capital in ordinary sentences
("▁The") are single pieces, and so are the two conversation headers, which every prompt carries.
"""

from __future__ import annotations

import io
import random
import string
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from owl_fast.prompts import TextPiece
from recipes.owl_nano.dialogues import sample_dialogue, training_scene
from recipes.owl_nano.encoding import pieces
from recipes.owl_nano.languages import COLORS_IN, SHAPES_IN
from recipes.owl_nano.settings import VOCABULARY_SIZE
from recipes.owl_nano.statements import statements
from recipes.owl_nano.world import COLOR_NAMES, NUMBER_WORDS, POSITIONS, SHAPES, caption

HEADERS = (
    "The following is a conversation between a curious human and AI assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "The following is a conversation between a curious human and AI. "
    "The AI gives helpful, detailed, and polite answers to the human's questions.",
)
_SENTENCE_STARTS = (
    "The There What Which Where Who How Is It Do Did Read Describe Count And At You Hello Hi "
    "Good Thank Goodbye Compute Reverse Yes No First Second See Welche Farbe De Rot Gelb Grün "
    "Türkis Blau Lila Rosa Rouge Jaune Vert Bleu Violet Rose Cyan Orange Kreis Quadrat "
    "Dreieck Stern Herz Kreuz Raute Mond"
)
_WORDS = ("there", "shape", "object", "picture", "text", "word", "number", "first", "second")


def fixed_pieces() -> list[str]:
    """Pieces that the training of the vocabulary may neither cut nor join to others."""
    positions = [name for row in POSITIONS for name in row]
    words = [*COLOR_NAMES, *SHAPES, *NUMBER_WORDS, *positions, *_WORDS, *_SENTENCE_STARTS.split()]
    marked = ["▁" + piece.replace(" ", "▁") for piece in (*HEADERS, *words)]
    unspaced = [word for code in ("zh", "ja") for word in (*COLORS_IN[code], *SHAPES_IN[code])]
    return list(dict.fromkeys([*marked, "Human:", "AI:", *string.ascii_uppercase, *unspaced]))


def corpus(seed: int, count: int) -> Iterator[str]:
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


def train_vocabulary(sentences: Iterable[str], path: Path, size: int = VOCABULARY_SIZE) -> None:
    """Write the model file; the same sentences give the same file. Ids as LLaMA's: unk 0, bos 1, eos 2.

    Line ends stay out of it, so that they are the byte piece <0x0A>, as in LLaMA's vocabulary.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in sentences for line in text.split("\n") if line),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=fixed_pieces(),
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
