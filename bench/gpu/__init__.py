"""The kernels on a GPU, from tests to profiles, by one command: python -m bench.gpu --out FOLDER.

clock       the device's time by replays of a CUDA graph, the host's beside it
samplers    what is timed below a layer
networks    training steps of whole networks: eager, compiled, as a graph
rows        a case, checked and timed, becomes rows
jobs        the cases, the most telling first
measure     the process that measures them, a row on disk as soon as there is one
profiled    six kernels for a profiler
stages      the command: tests, measurements, profiles, constants, sanitizers, within a time
"""
