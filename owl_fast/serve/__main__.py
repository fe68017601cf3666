"""`python -m owl_fast.serve`."""

from owl_fast.serve import main

if __name__ == "__main__":
    raise SystemExit(main())
