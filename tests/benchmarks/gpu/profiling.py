"""Launches and waits of one call: from PyTorch's profiler on a GPU, counted as operations on a CPU."""

from dataclasses import dataclass

from reference.counted_operations import CountedOperations
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

LAUNCHES = ("LaunchKernel", "GraphLaunch")
WAITS = ("Synchronize",)


@dataclass(frozen=True)
class Counts:
    """Kernels that the host launched, how often it waited, and the seconds of all kernels and copies together."""

    launches: int
    waits: int
    busy: float | None = None


def counts_of(call, *, on_gpu):
    if not on_gpu:
        with CountedOperations() as counted:
            call()
        return Counts(counted.operations, counted.waits)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as profiled:
        call()
    return of_events(profiled.key_averages())


def of_events(events):
    """From the profiler's sums: calls of the driver by their names, and what ran on the device."""
    launches = sum(each.count for each in events if any(name in each.key for name in LAUNCHES))
    waits = sum(each.count for each in events if any(name in each.key for name in WAITS))
    busy = sum(each.self_device_time_total for each in events if each.device_type == DeviceType.CUDA)
    return Counts(launches, waits, busy / 1e6)
