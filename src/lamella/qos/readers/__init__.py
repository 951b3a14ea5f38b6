"""What the machine says of itself: one reader a module, each alone.

pressure      how long processes waited for memory (PSI)
memory        what this process may use, within its control groups
processor     the share of the processor that others take
temperature   the hottest sensor, and whether the processor is slowed down for it
energy        what the processor consumed (RAPL)
battery       how full it is, and whether it drains
nvidia        memory, load and power of NVIDIA devices (extra ``nvidia``)
machine       all of them in one sample
reading       what readers share: absence with a reason, and small files of the kernel

A reader takes the folder that stands for ``/``, so that tests read recorded trees, and gives a frozen sample or
``Absent`` with the reason.  It never raises for what a machine lacks.

>>> from lamella.qos.readers.pressure import read_pressure
>>> read_pressure()  # doctest: +SKIP
MemoryPressure(where='/proc/pressure/memory', some_share=0.0, full_share=0.0, stalled_seconds=1.25)
"""
