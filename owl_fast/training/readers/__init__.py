"""What the rows of a data format mean: one file per format, each a row in formats.FORMATS.

fits(fields) tells a row of the format by its fields, read(row) makes a Sample or Caption of it. A row that is
none is a DataError with file, line and reason.
"""
