"""XLA flags for programs that are tiny and run once, on which a compiler need not spend time."""

from jaxlib.version import __version__

FLAGS = "--xla_backend_optimization_level=0"
# Later versions have the quicker emitters alone, and no such flag.
if tuple(map(int, __version__.split(".")[:2])) < (0, 11):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
