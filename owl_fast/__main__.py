"""`python -m owl_fast NAME ...`: the same as `owl-fast NAME ...`."""

from __future__ import annotations

from owl_fast.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
