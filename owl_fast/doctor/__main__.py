"""`python -m owl_fast.doctor`."""

from __future__ import annotations

from owl_fast.doctor.command import main

if __name__ == "__main__":
    raise SystemExit(main())
