"""`python -m owl_fast.evaluate`."""

from __future__ import annotations

from owl_fast.evaluate.command import main

if __name__ == "__main__":
    raise SystemExit(main())
