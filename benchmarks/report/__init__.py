"""Result documents as one page of HTML that opens without a network: page(documents), of files that read() took."""

from benchmarks.documents import read
from benchmarks.report.page import page

__all__ = ["page", "read"]
