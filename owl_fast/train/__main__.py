"""`python -m owl_fast.train`."""

from owl_fast.train import main

if __name__ == "__main__":
    raise SystemExit(main())
