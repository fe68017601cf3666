"""What is a block, and of which kind."""

from __future__ import annotations

import textwrap

import pytest

from tests.documents.blocks import Block, blocks, spoken_commands, without_blocks

DOCUMENT = textwrap.dedent(
    '''\
    # Title

        make chat    # a comment
        make test \\
            --more

        make serve

    A paragraph
        goes on here.

    ## Below

    ```python
    print("""

        no block of its own
    """)
    ```
    * a list, with `owl-fast doctor
      MODEL` and `no command`

      ```sh
      pip install .
      ```

    ~~~json
    {"a": "```"}
    ~~~
    '''
)


def test_blocks() -> None:
    found = blocks(DOCUMENT)
    assert [(b.line, b.language, b.heading, b.kind) for b in found] == [
        (3, "", "Title", "shell"),
        (15, "python", "Below", "python"),
        (24, "sh", "Below", "shell"),
        (28, "json", "Below", "other"),
    ]
    assert found[0].text == "make chat    # a comment\nmake test \\\n    --more\n\nmake serve\n"
    assert found[1].text == 'print("""\n\n    no block of its own\n""")\n'
    assert found[2].text == "pip install .\n"
    assert found[3].text == '{"a": "```"}\n'
    for block in found:
        assert DOCUMENT.splitlines()[block.line - 1].strip() == block.text.splitlines()[0]


def test_a_fence_that_stays_open() -> None:
    with pytest.raises(AssertionError, match="line 2: a fence that is never closed"):
        blocks("\n```sh\nmake\n")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("owl-fast chat\n", "shell"),
        ("python -m owl_fast.chat\n", "shell"),
        ('CMAKE_ARGS="-D" pip install x\n', "shell"),
        ("pythonic words\n", "other"),
        ("makes sense\n", "other"),
        ('{"image": "a.jpg"}\n', "other"),
        ("$ make\nchat\n", "console"),
    ],
)
def test_kinds_without_a_language(text: str, kind: str) -> None:
    assert Block(1, range(1), "", "", text).kind == kind


def test_a_console_is_commands_and_what_they_print() -> None:
    text = "$ owl-fast chat \\\n    -p 'What?'\nThe star is red.\n...\n$ make\ndone\n"
    block = Block(1, range(1), "console", "", text)
    assert block.script == "owl-fast chat \\\n    -p 'What?'\nmake\n"
    assert block.shown == ["The star is red.", "...", "done"]


def test_prose() -> None:
    prose = without_blocks(DOCUMENT).splitlines()
    kept = ["# Title", "A paragraph", "    goes on here.", "## Below", "* a list, with `owl-fast doctor"]
    assert [line for line in prose if line] == [*kept, "  MODEL` and `no command`"]
    assert spoken_commands(DOCUMENT) == ["owl-fast doctor MODEL"]
