"""Result documents as one page of HTML that opens without a network: write(path, [read(file), ...])."""

from benchmarks.documents import read
from benchmarks.report.page import check_packages, page, write

__all__ = ["check_packages", "page", "read", "write"]
