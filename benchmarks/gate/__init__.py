"""The gate a change has to pass: python -m benchmarks.gate compares what runs with benchmarks/gate/table.py.

Counts need no clock: launches, calls and bytes are the same on every machine, with any number of cores and
beside any load. A count that moved fails, also one that got better: the table says what is true. Ratios of
contenders in one run have bounds of half of what is usually seen, or less. No time is compared with a number.

Nothing passes unseen: what cannot be checked, because Triton or libowl_cpu is not there, is "absent" with the
reason, and the exit code is 1 as for what moved. `make gate` installs both; neither needs a GPU.
"""
