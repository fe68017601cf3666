"""What has to be said about single blocks and commands. A row that fits nothing any more fails a test."""

from __future__ import annotations

from dataclasses import dataclass

# Commands that are not run but read by their own parser, and why. The pattern is searched for in the words of
# the command, as make or the shell passes them on.
READ = {
    r"^pip install |^python -m pip ": "minutes, and the network; extras, packages and files are looked up",
    r"^python -m pytest |^ruff |^mypy": "these tests are a part of it",
    r"^python -m benchmarks.gate": "CI runs it, behind these tests",
    r"^cmake ": "a minute of compiling; tests of packaging build it",
    r"^owl-fast completion (zsh|fish)": "scripts for other shells than bash; tests/test_completion.py",
    r"^python benchmarks/run.py (?!--help|--html|--compare|load --model tiny)": "minutes; tests/benchmarks",
    r"^python -m recipes.owl_nano.run": "hours; tests/recipes walk through its phases",
    r"^serve run ": "takes Ray; tests/serving/test_ray_app.py",
}

# Blocks whose syntax alone is checked: (document, how the block begins) -> why nothing in them is started.
NOT_STARTED = {
    ("examples/serving/README.md", "export OWL_API_KEY="): "docker builds an image from the network",
    ("examples/serving/README.md", "git clone"): "root writes to /etc and starts a service",
}


@dataclass(frozen=True)
class Other:
    """Blocks of a document that begin so and are neither commands nor Python, and what they are instead."""

    document: str
    begins: str
    what: str
    printed_by: str = ""  # a command of the same document: its first line has to come, but for numbers


OTHERS = (
    Other("README.md", "$ owl-fast chat", "a conversation; test_conversation.py holds it"),
    Other("docs/data.md", '{"', "rows of a file; tests/training/readers/test_guide.py reads them"),
    Other("docs/data.md", "[{", "the same"),
    Other("docs/data.md", "000000000.jpg", "names of files in a tar"),
    Other("docs/data.md", "image,caption", "a table; tests/training/readers/test_guide.py reads it"),
    Other("docs/evaluation.md", "| task", "output", printed_by="python -m owl_fast.evaluate nano"),
    Other("docs/serving.md", "ready: ", "output, on a machine with a GPU"),
    Other("docs/structure.md", "benchmarks  export  recipes", "a drawing, held by tests/test_layout.py"),
    Other("examples/serving/README.md", "owl.example.org {", "a file of Caddy's"),
)

# What a document says about the output of a command: (document, command, a line of output). The document has
# both in one line.
SAID = (("README.md", "owl-fast chat runs/brief/final -i examples/scene.png", "red"),)

# Flags that make a command small enough, where it does not have them itself.
SMALLER = {
    r"owl_fast.train |owl-fast train ": {
        "--max-steps": "2", "--batch": "4", "--warmup": "1", "--workers": "0", "--eval-every": "0",
    },
    r"evaluate nano": {"--per-task": "1", "--drawing": "blind"},
    r"chat instruction_tuned.pth": {"--vision-heads": "3", "--abstractor-heads": "2"},
    r"owl_fast.serve|owl-fast serve|owleval rate": {"--port": "0"},
}  # fmt: skip

# Commands in a process of their own: what they set up lasts as long as the process.
APART = r"\bMAGAer13/|^torchrun "
# Commands that go on until they are stopped: they are, once their address answers.
SERVERS = r"^python -m owl_fast.serve|^owl-fast serve|owleval rate"

# Words in documents -> what stands for them here, in this order; {server} and {judge} are addresses.
STAND_INS = {
    "http://127.0.0.1:8000/v1 --model NAME": "{judge} --model NAME",
    "--url URL": "--url {judge}",
    "http://127.0.0.1:8000": "{server}",
    "vision_heads=8": "vision_heads=3",
    "abstractor_heads=8": "abstractor_heads=2",
}
# These are made anew by every command that names them behind --out.
MADE_ANEW = ("DIR", "FILE.gguf")

# What the Python of a document leaves and prints: files, a line, and how often at least.
LEFT_BY_PYTHON = {"docs/python.md": ("conversation.json", "my-owl/config.json")}
PRINTED_BY_PYTHON = {"README.md": ("The star is red.", 2), "docs/python.md": ("The star is red.", 3)}

# Documents whose Python needs what their commands leave.
AFTER_COMMANDS = ("docs/exports.md",)
# Documents whose commands the default tests run; those of the others take longer and are slow tests.
SHORT = (
    *(
        "README.md",
        "CONTRIBUTING.md",
        "docs/benchmarks.md",
        "docs/chat.md",
        "docs/data.md",
        "docs/quantization.md",
    ),
    *("docs/serving.md", "recipes/owl_nano/README.md"),
)
