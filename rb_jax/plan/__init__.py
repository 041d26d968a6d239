"""What a step will need on hardware that is not here: memory, work, communication and time.

A jitted step is compiled for a named topology by the compiler that would run it there, and its
output is read: ``topologies`` (names to devices), ``compiling`` (a child process per compilation),
``hlo``, ``work``, ``hbm``, ``collectives`` and ``bundles`` (what the compiler wrote),
``timing`` (from there to seconds).
"""
