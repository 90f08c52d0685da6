"""The peak memory of a process that a test starts, measured by that process itself.

Not by `ru_maxrss`: that of a child begins with the peak of the process that started it, so that beside a
large one no growth is ever seen.
"""

#: Source of a function ``peak_kib()``, to be put before a script.
PEAK_KIB = """
def peak_kib():
    with open("/proc/self/status") as lines:
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
"""
