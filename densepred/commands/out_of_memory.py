"""Memory that does not suffice: how it shows, and what helps, with the values that a run has now."""

import re
from traceback import extract_tb
from typing import Any, Literal

import pytorch_lightning as pl
import torch

from densepred.anatomy.memory import StepMemory, step_memory
from densepred.callbacks.checkpoints import LastCheckpoint
from densepred.commands.describe import build_module, configured_size

Where = Literal["device", "process", "worker", "shared"]

_SIGNS: dict[Where, str] = {
    "device": r"(CUDA|MPS|HIP|XPU)\b.*out of memory|STATUS_ALLOC_FAILED",
    "shared": r"DataLoader worker.*Bus error|out of shared memory|unable to (write to file|mmap|allocate shared)",
    "worker": r"DataLoader worker.*(killed by signal: Killed|exited unexpectedly)",
    "process": r"DefaultCPUAllocator|can't allocate memory|not enough memory|Insufficient memory",
}


def where_memory_ended(error: BaseException) -> Where | None:
    """Which memory an error is about; None where it is about something else.

    "device" is the accelerator's, "process" that of a process, "worker" that of a loading process which the system has
    ended, "shared" what loading processes hand batches over in.

    Example:
        >>> where_memory_ended(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "))
        'worker'
        >>> where_memory_ended(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    """
    if isinstance(error, torch.OutOfMemoryError):
        return "device"
    if isinstance(error, MemoryError):
        return "process"
    text = " ".join(str(error).split())
    return next((where for where, sign in _SIGNS.items() if re.search(sign, text)), None)


def memory_advice(where: Where, error: BaseException, trainer: pl.Trainer, data: Any, config: dict[str, Any]) -> str:
    """What happened, and which options help, with their values now and what is planned.

    Args:
        where: As `where_memory_ended` has it.
        error: It.
        trainer: Of the run, as it stopped.
        data: The datamodule.
        config: Of the run, as plain values.
    """
    what = {
        "device": f"The memory of {_device(trainer)} does not suffice",
        "process": "The memory of this machine, or of what it lets this process have, does not suffice",
        "worker": "A loading process was ended by the system, as a rule for want of memory",
        "shared": "The shared memory through which loading processes hand their batches over does not suffice",
    }[where]
    # the trainer has forgotten what it did
    evaluating = any(frame.filename.endswith("evaluation_loop.py") for frame in extract_tb(error.__traceback__))
    stage = "evaluation" if evaluating else "training"
    sentences = re.split(r"\.?\s*\n|\.\s", str(error).strip())
    said = next((one for one in sentences if re.search("allocate|signal|exited", one)), sentences[0])
    batch = _evaluation_batch(data) if evaluating else [*_batch(trainer, data, config), *_network(trainer)]
    loading = _loading(trainer, evaluating, where)
    lines = [*loading, *batch] if where in ("worker", "shared") else batch
    if where == "process":
        lines += loading
    return "\n".join(
        [
            f"{what}: {stage}, step {trainer.global_step}: {said or type(error).__name__}.",
            "What helps, and what it is now:",
        ]
        + [f"  - {line}" for line in lines]
        + ([] if evaluating or where in ("worker", "shared") else _plan(trainer, config, data))
        + _continue(trainer)
    )


def _device(trainer: pl.Trainer) -> str:
    device = trainer.strategy.root_device
    if device.type != "cuda" or not torch.cuda.is_available():
        return str(device)
    found = torch.cuda.get_device_properties(device)
    return f"{device} ({found.name}, {found.total_memory / 2**30:.0f} GiB)"


def _evaluation_batch(data: Any) -> list[str]:
    size = getattr(data, "eval_batch_size", None)
    return [f"a smaller batch: --data.eval_batch_size {_half(size)} (now {size}), which changes no metric"]


def _batch(trainer: pl.Trainer, data: Any, config: dict[str, Any]) -> list[str]:
    size, accumulated = getattr(data, "batch_size", None), trainer.accumulate_grad_batches
    lines = []
    if size and size > 1:
        lines.append(
            f"a smaller batch: --data.batch_size {_half(size)} (now {size}) with --trainer.accumulate_grad_batches "
            f"{2 * accumulated} (now {accumulated}), so that a step sees as many images"
        )
    crop = configured_size(config)
    now = f" (now {crop[0]} x {crop[1]})" if crop else ""
    lines.append(f"smaller images: the size of data.train_transforms or of the data{now}")
    return lines


def _network(trainer: pl.Trainer) -> list[str]:
    there = {type(callback).__name__ for callback in trainer.callbacks}  # type: ignore[attr-defined]
    lines = []
    if str(trainer.precision).startswith("32"):
        lines.append(
            f"half precision: --trainer.precision bf16-mixed (now {trainer.precision}): half the memory of most maps"
        )
    if "Recompute" not in there:
        lines.append("activation checkpointing: --trainer.callbacks+=Recompute (now not there): a step takes longer")
    if "LargestBatch" not in there:
        lines.append("let it be found what fits: --trainer.callbacks+=LargestBatch (now not there)")
    return lines


def _loading(trainer: pl.Trainer, evaluating: bool, where: Where) -> list[str]:
    loader = trainer.val_dataloaders or trainer.test_dataloaders if evaluating else trainer.train_dataloader
    workers = getattr(loader, "num_workers", 0)
    lines = []
    if workers:
        lines.append(f"fewer loading processes: --data.num_workers {workers // 2} (now {workers}); each holds batches")
    if where == "shared":
        lines.insert(
            0, "more shared memory: in a container `docker run --shm-size 8g` or `--ipc=host`; `df -h /dev/shm` tells"
        )
    return lines


def _half(size: int | None) -> int:
    return max((size or 2) // 2, 1)


def _plan(trainer: pl.Trainer, config: dict[str, Any], data: Any) -> list[str]:
    """What `densepred describe` plans for a step."""
    again = f"densepred describe {trainer.log_dir}/config.yaml --quick" if trainer.log_dir else "densepred describe"
    size = configured_size(config)
    memory = _planned(config, getattr(data, "batch_size", 1), size) if size else None
    if memory is None:
        return [f"What a step takes, before it is trained: {again} --size H W --batch_size N"]
    return [
        f"A step in float32 is planned to take {memory.total / 2**20:,.0f} MiB, {memory.activations / 2**20:,.0f} of "
        f"them activations, which shrink with batch and images; try others: {again} --size H W --batch_size N"
    ]


def _planned(config: dict[str, Any], batch_size: int, size: tuple[int, int]) -> StepMemory | None:
    try:
        with torch.device("meta"):
            return step_memory(build_module(config, []), batch_size, size)
    except Exception:  # of what kind ever: the want of memory is what the user has to hear of
        return None


def _continue(trainer: pl.Trainer) -> list[str]:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, LastCheckpoint) and callback.last_model_path:
            return [f"What was trained is saved: densepred fit --ckpt_path {callback.last_model_path}"]
    return []
