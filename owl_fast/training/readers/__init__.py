"""One file per data format; each yields samples with a name for every record."""
