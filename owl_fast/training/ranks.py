"""Several processes as one run: each takes its share of every update, torch's DDP sums the gradients.

torchrun starts them and joined() brings them together; with one process nothing here communicates. What is
said beside the gradients goes through gloo on the CPU. A process that dies or hangs is noticed by the others
within the timeout of their process group, in a RankError that names it.
"""

from __future__ import annotations

import datetime
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import PrefixStore  # torch.distributed.PrefixStore, which has no type there
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from owl_fast.errors import RankError
from owl_fast.training.stopping import StopRequested

TIMEOUT = 60.0  # seconds a process waits for the others
BEAT = 1.0  # seconds between the signs of life of a process that works alone
BUSY, DONE, STOPPED, FAILED = range(4)
NETWORK = re.compile(r"gloo|nccl|monitoredbarrier|connection|timed out waiting|socket", re.IGNORECASE)

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's rank among `size`; group: the gloo group they talk in, None for the default one."""

    rank: int = 0
    size: int = 1
    group: Any = None

    @classmethod
    def current(cls) -> Ranks:
        """What torch.distributed says, if it runs; all processes call it together."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls()
        group = None
        if dist.get_backend() != dist.Backend.GLOO:
            group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=TIMEOUT))
        return cls(dist.get_rank(), dist.get_world_size(), group)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all ranks, in float64."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        with self.named():
            dist.all_reduce(total, group=self.group)
        return [float(value) for value in total.tolist()]

    def gather(self, values: list[str]) -> list[str]:
        """The lists of all ranks, joined."""
        if self.size == 1:
            return values
        lists: list[list[str]] = [[] for _ in range(self.size)]
        with self.named():
            dist.all_gather_object(lists, values, group=self.group)
        return [value for part in lists for value in part]

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            with self.named():
                dist.monitored_barrier(self.group)

    def check_equal(self, what: str) -> None:
        """RankError unless all ranks say the same of themselves."""
        heard = self.gather([what])
        odd = next((rank for rank, said in enumerate(heard) if said != heard[0]), None)
        if odd is not None:
            raise RankError(
                f"rank {odd} {heard[odd]}, rank 0 {heard[0]}; all of them must see the same run folder"
            )

    def share(self, module: nn.Module) -> nn.Module:
        """The module whose backward pass leaves the mean over ranks in .grad.

        Parameters that no rank used keep no gradient. The weights must be equal on all ranks already.
        """
        if self.size == 1:
            return module
        # A gradient's dimension of size 1 may have any stride, and torch >= 2.13 renames broadcast_buffers.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(
            module,
            broadcast_buffers=False,
            init_sync=False,  # of a frozen 7B that every process has read, nothing needs to be sent
            find_unused_parameters=True,  # the last micro-batch of a rank may have no picture
            gradient_as_bucket_view=True,
        )

    def apart(self, module: nn.Module) -> AbstractContextManager[None]:
        """A micro-batch that is not the last: its gradients are summed later, with those of the last."""
        return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()

    def alone(self, what: str, work: Callable[[], T]) -> T | None:
        """work() on the first rank while the others wait, however long, as long as it shows signs of life.

        They get None. A StopRequested of the first is raised on all.
        """
        if self.size == 1:
            return work()
        if self.leads:
            return self._work_alone(work)
        with self.named():
            while (word := self._say(BUSY)) == BUSY:
                pass
        if word == STOPPED:
            raise StopRequested
        if word == FAILED:
            raise RankError(f"rank 0 of {self.size} failed while it was {what}; its own message says why")
        return None

    def told(self, what: str, work: Callable[[], T]) -> T:
        """work() on the first rank, and its result on all."""
        result = [self.alone(what, work)]
        if self.size > 1:
            with self.named():
                dist.broadcast_object_list(result, 0, group=self.group)
        return cast(T, result[0])

    def _work_alone(self, work: Callable[[], T]) -> T:
        try:
            with self._signs_of_life():
                result = work()
        except BaseException as error:
            with suppress(RuntimeError):  # what work() met counts, not that others are gone as well
                self._say(STOPPED if isinstance(error, StopRequested) else FAILED)
            raise
        with self.named():
            self._say(DONE)
        return result

    @contextmanager
    def _signs_of_life(self) -> Iterator[None]:
        """Say BUSY now and then; if nobody hears it, the main thread meets the same in the end."""
        ended = threading.Event()

        def beat() -> None:
            with suppress(RuntimeError):
                while not ended.wait(BEAT):
                    self._say(BUSY)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _say(self, word: int) -> int:
        """The first rank's word, on every rank."""
        told = torch.tensor([word])
        dist.broadcast(told, 0, group=self.group)
        return int(told.item())

    @contextmanager
    def named(self) -> Iterator[None]:
        """What torch.distributed complains of in the block becomes a RankError that names the rank."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not (isinstance(error, dist.DistError) or NETWORK.search(str(error))):
                raise
            self._blame(error)

    def _blame(self, error: RuntimeError) -> NoReturn:
        """A last roll call tells who is missing; the first rank hears all, the others hear the first."""
        try:
            dist.monitored_barrier(self.group, datetime.timedelta(seconds=5), wait_all_ranks=True)
            missing: Sequence[str] = ()
        except RuntimeError as silence:
            found = re.search(r"[Rr]anks? ([\d, ]+) failed to pass", str(silence))
            missing = re.findall(r"\d+", found[1]) if found else () if self.leads else ("0",)
        if self.size == 2:
            missing = (str(1 - self.rank),)
        who = f"rank {' and '.join(missing)}" if missing else "one of the others"
        raise RankError(
            f"{who} of {self.size} does not answer rank {self.rank} ({_brief(error)}): it died, failed or "
            "hangs, and its own message says why; start all of them again, the run goes on from its newest "
            "snapshot"
        ) from None


@contextmanager
def joined(device: str = "cpu", timeout: float = TIMEOUT) -> Iterator[Ranks]:
    """Join the processes that torchrun started with this one, as its environment says, if nobody has yet.

    device: "cuda" takes the GPU of LOCAL_RANK. timeout: seconds to wait for the others, here and later. For
    torchrun --max-restarts on several machines set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1: they do not count
    restarts alike.
    """
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks.current()
        return
    backend = "gloo"
    if device == "cuda":
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    limit = datetime.timedelta(seconds=timeout)
    try:
        store, rank, size = next(rendezvous("env://", timeout=limit))
        # torchrun's store outlives a restart, and so do the addresses of the processes that are gone.
        attempt = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(backend, timeout=limit, store=attempt, rank=rank, world_size=size)
    except (dist.DistError, RuntimeError) as error:
        raise RankError(
            f"rank {os.environ.get('RANK')} of {os.environ['WORLD_SIZE']} did not find the others within "
            f"{timeout:.0f} s ({_brief(error)})"
        ) from None
    yield Ranks.current()
    dist.destroy_process_group()  # not after an error: it may wait for a process that is gone


def _brief(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
