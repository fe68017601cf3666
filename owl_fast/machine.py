"""What this machine has: processor, memory, GPUs. Asked when called, never at import."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from pathlib import Path

import torch

# What matrix code can use, in the names of /proc/cpuinfo (x86-64, then aarch64).
FEATURES = (
    *("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2"),
)


def cpu_name() -> str:
    for key in ("model name", "Model", "Hardware"):
        if match := re.search(rf"^{key}\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE):
            return match[1].strip()
    return platform.machine()


def cpu_features() -> list[str]:
    """Those of FEATURES this processor has."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    present = set(match[1].split()) if match else set()
    return [feature for feature in FEATURES if feature in present]


def cpu_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name(device: torch.device) -> str:
    """`cpu`, or `cuda:0` and the name of the GPU."""
    if device.type != "cuda":
        return str(device)
    index = device.index or 0
    return f"cuda:{index} {torch.cuda.get_device_name(index)}"


def device_memory(device: torch.device) -> int:
    """Bytes it has in all: of a GPU its own, of a CPU what this machine or container may use."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(ValueError):
            limits.append(int(_read(file)))
    return min(limits)


def free_memory(device: torch.device) -> int:
    """Bytes of device_memory that nobody uses; files the system keeps in memory can go and count as free."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [device_memory(device)]
    if match := re.search(r"^MemAvailable:\s*(\d+) kB", _read("/proc/meminfo"), re.MULTILINE):
        free.append(int(match[1]) << 10)
    for limit, used, kept in (
        ("memory.max", "memory.current", r"^(?:in)?active_file (\d+)"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", r"^total_(?:in)?active_file (\d+)"),
    ):
        root = Path("/sys/fs/cgroup")
        with contextlib.suppress(ValueError):
            stat = _read(str((root / limit).with_name("memory.stat")))
            files = sum(int(size) for size in re.findall(kept, stat, re.MULTILINE))
            free.append(int(_read(str(root / limit))) - int(_read(str(root / used))) + files)
    return max(min(free), 0)


def memory_in_use(device: torch.device) -> int:
    """Bytes this process holds there: on a GPU what torch took, on a CPU what is resident and no file's."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    match = re.search(r"^RssAnon:\s*(\d+) kB", _read("/proc/self/status"), re.MULTILINE)
    return int(match[1]) << 10 if match else 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
