"""Result documents as one page of HTML that opens without a network: page([read(path), ...])."""

from benchmarks.documents import read
from benchmarks.report.page import page

__all__ = ["page", "read"]
