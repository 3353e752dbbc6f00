"""What a step costs on this machine, in seconds and bytes.

step.py         one configuration: throughput, step time, peak memory, MFU
paired.py       several candidates in one process, taking turns: ratios with their spread
crossover.py    from how many tokens on the second of two models is faster
memory.py       the peak of one block of code
child.py        a function in a process of its own
environment.py  what a measurement has to say about where it was made
self_test.py    whether this machine computes the right thing

Needs torch and timm, but neither data nor configs.
"""
