"""`python -m owl_fast.data`."""

from __future__ import annotations

from owl_fast.data.command import main

if __name__ == "__main__":
    raise SystemExit(main())
