"""A program for tests of the door."""

import sys

print(f"{sys.argv[1]}: {sys.stdin.read()}", end="")
