"""Devices, dtypes, threads, seeds, timers and the GPU lease: the only file that asks what the machine has."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from winnow.tasks import locks
from winnow.tasks.errors import BadInput, DeviceUnavailable

if TYPE_CHECKING:
    import torch

__all__ = [
    "borrowed_generator",
    "by_device",
    "child_seed",
    "compute_dtype",
    "core_pool",
    "cpu_count",
    "data_root",
    "describe",
    "device",
    "free_bytes",
    "full_precision",
    "gpu_ids",
    "installed",
    "lease",
    "leased_device",
    "seed_sequence",
    "set_threads",
    "spare_threads",
    "thread_pool",
    "torch_generator",
    "trial_workers",
]

Value = TypeVar("Value")


def data_root() -> Path:
    """Folder of datasets and weights: ``$WINNOW_DATA``, else ``~/.cache/winnow/data``."""
    folder = os.environ.get("WINNOW_DATA") or Path.home() / ".cache" / "winnow" / "data"
    return Path(folder).expanduser().absolute()


def installed(*packages: str) -> dict[str, str]:
    """The versions of those packages that are installed."""
    from importlib import metadata

    versions = {}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def cpu_count() -> int:
    """Cores that this process may use; ``$WINNOW_THREADS`` overrides it."""
    if asked := os.environ.get("WINNOW_THREADS"):
        return _positive("WINNOW_THREADS", asked, "a core count")
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def trial_workers() -> int:
    """Trainings to run side by side: one per GPU, or one on a CPU; ``$WINNOW_WORKERS`` overrides it.

    Flow modules ask while they are being imported, hence without torch.
    """
    if asked := os.environ.get("WINNOW_WORKERS"):
        return _positive("WINNOW_WORKERS", asked, "a number of trainings")
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return max(1, len([gpu for gpu in visible.split(",") if gpu]))
    return max(1, len(list(Path("/proc/driver/nvidia/gpus").glob("*"))))


def _positive(variable: str, text: str, what: str) -> int:
    """The number that an environment variable asks for."""
    if not text.isdigit() or int(text) < 1:
        raise BadInput(
            f"{variable} is {text!r}, not a positive whole number.",
            remedy=f"unset {variable} or set it to {what}",
        )
    return int(text)


_crew = threading.local()  # marks the threads of a pool that already fills the cores


def _join_crew() -> None:
    _crew.joined = True


def thread_pool(threads: int | None = None) -> ThreadPoolExecutor:
    """A pool of one thread per core, or of ``threads``, inside which :func:`spare_threads` is 1.

    >>> with thread_pool(2) as pool:
    ...     list(pool.map(lambda _: spare_threads(), range(2)))
    [1, 1]
    """
    return ThreadPoolExecutor(threads or cpu_count(), initializer=_join_crew)


def spare_threads() -> int:
    """Threads that a function may start for itself: one per core, unless its caller already runs as many.

    That is 1 inside a :func:`thread_pool`, and a fair share of the cores in a DataLoader's worker. Without
    it, 16 workers that each decode with 16 threads would put 256 threads on 16 cores.
    """
    if getattr(_crew, "joined", False):
        return 1
    data = sys.modules.get("torch.utils.data")  # a worker has loaded it; nobody else needs to
    worker = data.get_worker_info() if data is not None else None
    return cpu_count() if worker is None else max(1, cpu_count() // worker.num_workers)


_core_pool_lock = threading.Lock()


@contextmanager
def core_pool(
    threads: int | None = None, *, set_threads: tuple[Callable[[int], object], ...] = ()
) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads that each use one core inside torch; all other threads go on as before.

    Small operations run side by side need no barrier inside each of them, which on a busy machine costs more
    than the work; and their results cannot depend on the number of cores. If the block fails, what has not
    begun is cancelled.

    Args:
        threads: how many; default as many as torch uses.
        set_threads: setters of other libraries, such as ``faiss.omp_set_num_threads``; called in each thread.

    >>> import torch
    >>> with core_pool(2) as pool:
    ...     list(pool.map(lambda _: torch.get_num_threads(), range(2)))
    [1, 1]
    """
    import torch

    usual = torch.get_num_threads()
    threads = threads or usual
    ready = threading.Barrier(threads + 1)

    def prepare() -> None:
        torch.get_num_threads()  # a thread takes over the process-wide number when it first asks for it
        for function in (torch.set_num_threads, *set_threads):
            function(1)
        _join_crew()
        ready.wait()

    with ThreadPoolExecutor(threads) as pool:
        with _core_pool_lock:
            for _ in range(threads):
                pool.submit(prepare)
            ready.wait()
            torch.set_num_threads(usual)  # the process-wide number, for later threads
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def set_threads() -> int:
    """Give torch as many threads as there are cores to use; returns the number."""
    import torch

    threads = cpu_count()
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return threads


def gpu_ids() -> list[str]:
    """UUIDs of the GPUs that this process may use, however ``CUDA_VISIBLE_DEVICES`` names or orders them."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [f"GPU-{torch.cuda.get_device_properties(i).uuid}" for i in range(torch.cuda.device_count())]


def device(name: str = "auto") -> torch.device:
    """The torch device of that name; ``auto`` is the first GPU, else the CPU.

    Raises:
        DeviceUnavailable: a GPU is asked for and there is none.

    >>> device("cpu")
    device(type='cpu')
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        named = torch.device(name)
    except RuntimeError as error:
        raise BadInput(f"{name!r} is not a device.", remedy="use auto, cpu, cuda or cuda:<index>") from error
    visible = torch.cuda.device_count() if named.type == "cuda" and torch.cuda.is_available() else 0
    if named.type == "cuda" and (named.index or 0) >= visible:
        seen = f"{visible or 'none'} visible"
        raise DeviceUnavailable(
            f"device={name}: no such GPU ({seen}).",
            remedy="`winnow doctor` shows what torch sees; device=cpu always works",
        )
    return named


def by_device(values: Mapping[str, Value], where: torch.device) -> Value:
    """The value for a device's type, out of one for ``"cpu"`` and one for ``"cuda"``.

    Raises:
        DeviceUnavailable: another type of device.

    >>> by_device({"cpu": 1024, "cuda": 8192}, device("cpu"))
    1024
    """
    if where.type not in values:
        raise DeviceUnavailable(
            f"device={where}: Winnow computes on cpu and cuda only.", remedy="device=cpu always works"
        )
    return values[where.type]


def full_precision() -> None:
    """From now on, float32 products and convolutions on GPUs are computed in float32, not in TF32.

    TF32 keeps 10 bits of the mantissa; kNN's error bounds and the features and scores that must agree with
    those of a CPU need all 23. The switches are process-wide, so this is set once and never restored: two
    threads that each saved, set and restored them would put back each other's values. cuDNN stays enabled
    (``torch.backends.cudnn.flags(allow_tf32=False)`` would turn it off: its ``enabled`` defaults to False).
    Training loses nothing, since it runs in bfloat16 or float16 where TF32 exists.
    """
    import torch

    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    for operation in ("conv", "rnn"):  # in torch >= 2.9 a general fp32_precision="tf32" would still count
        settings: Any = getattr(torch.backends.cudnn, operation, None)
        if hasattr(settings, "fp32_precision"):
            settings.fp32_precision = "ieee"


def compute_dtype(where: torch.device) -> torch.dtype:
    """The fastest inference dtype that the device has units for: 16 bits on GPUs, float32 on CPUs."""
    import torch

    if where.type != "cuda":
        return torch.float32
    with torch.cuda.device(where):  # the question is about the current device
        # emulation is slower than float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def free_bytes(where: torch.device) -> int:
    """Free memory of the device."""
    import torch

    if where.type == "cuda":
        return torch.cuda.mem_get_info(where)[0]
    with suppress(OSError), open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 8 << 30


def describe(where: torch.device) -> str:
    """A device in words, for logs and provenance."""
    import platform

    import torch

    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def seed_sequence(seed: int, *purpose: str) -> list[int]:
    """Words of entropy for one purpose of a seed: data order, augmentation and init draw independent streams.

    >>> seed_sequence(0, "order") != seed_sequence(0, "augment")
    True
    """
    return [seed, *(int.from_bytes(word.encode()[:8].ljust(8, b"\0"), "little") for word in purpose)]


def child_seed(seed: int, *purpose: str) -> int:
    """A seed for one purpose of another seed, as a number below 2³².

    >>> child_seed(0, "repeat", "1") != child_seed(0, "repeat", "2")
    True
    """
    import numpy as np

    return int(np.random.SeedSequence(seed_sequence(seed, *purpose)).generate_state(1, np.uint32)[0])


def torch_generator(seed: int, *purpose: str, where: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for one purpose of one seed."""
    import numpy as np
    import torch

    word = np.random.SeedSequence(seed_sequence(seed, *purpose)).generate_state(1, np.uint64)[0]
    return torch.Generator(device=where).manual_seed(int(word >> np.uint64(1)))


_generator_lock = threading.RLock()


@contextmanager
def borrowed_generator(seed: int) -> Iterator[None]:
    """Inside, torch's global CPU generator is seeded with ``seed``; afterwards it is as it was.

    torch initialises weights from that generator only. One thread at a time: the others wait.

    >>> import torch
    >>> before = torch.get_rng_state()
    >>> with borrowed_generator(0):
    ...     layer = torch.nn.Linear(2, 2)
    >>> torch.equal(before, torch.get_rng_state())
    True
    """
    import torch

    with _generator_lock, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def lease(
    count: int = 1, *, pool: list[str] | None = None, poll: float = 0.2, timeout: float | None = None
) -> Iterator[list[str]]:
    """Hold ``count`` GPUs, exclusively among all threads and processes of this host.

    The kernel decides, by ``flock`` on one file per physical device: it drops the lock when the holder dies,
    whatever the cause, so a killed run never blocks the next one, and no server is needed. Taken inside a
    task's body, after the cache look-up and the key lock, so that cached tasks never queue; of several
    devices, all or none are taken, so two-GPU tasks cannot deadlock.

    Args:
        count: devices to hold; 0 holds none.
        pool: physical ids to choose from, default all visible.
        poll: seconds between tries.
        timeout: give up after this many seconds; None waits for ever.

    Yields:
        ids of the held devices.

    Raises:
        DeviceUnavailable: more are asked for than there are, or the wait took longer than ``timeout``.

    >>> with lease(0) as held:
    ...     held
    []
    """
    pool = (gpu_ids() if count else []) if pool is None else pool
    if count > len(pool):
        raise DeviceUnavailable(
            f"{count} GPUs asked for, {len(pool)} visible.",
            remedy="`winnow doctor` shows what torch sees; device=cpu always works",
        )
    folder = Path(os.environ.get("WINNOW_GPU_LOCKS") or Path(tempfile.gettempdir()) / "winnow-gpu-locks")
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        with ExitStack() as held:
            taken: list[str] = []
            for gpu in pool:
                if len(taken) < count and (lock := locks.try_lock(folder / f"{gpu}.lock")) is not None:
                    held.callback(os.close, lock)
                    taken.append(gpu)
            if len(taken) == count:
                yield taken
                return
        if deadline is not None and time.monotonic() > deadline:
            raise DeviceUnavailable(
                f"no {count} free GPUs within {timeout} s.",
                remedy=f"the holders are named in {folder}/*.lock",
            )
        time.sleep(poll)


@contextmanager
def leased_device(name: str = "auto") -> Iterator[torch.device]:
    """The device of that name, a GPU held exclusively during the block; torch gets all this process's cores.

    >>> with leased_device("cpu") as where:
    ...     where.type
    'cpu'
    """
    import torch

    set_threads()
    where = device(name)
    if where.type != "cuda":
        yield where
        return
    full_precision()
    torch.backends.cudnn.benchmark = True  # process-wide, like TF32: set once, never restored
    visible = gpu_ids()
    pool = visible if where.index is None else [visible[where.index]]
    with lease(1, pool=pool) as held:
        yield torch.device("cuda", visible.index(held[0]))
