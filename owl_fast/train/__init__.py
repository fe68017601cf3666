"""The command that trains: `python -m owl_fast.train --stage 2 --model DIR --data FILE ... --out DIR`."""
