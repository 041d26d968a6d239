"""The house's floors: an import goes down, or stays in its own room; never up, never round."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import rb_jax

PACKAGE = Path(rb_jax.__file__).parent
# From the roof to the ground (docs/architecture.md). Rooms on one floor do not see each other.
FLOORS = (
    ("__init__", "__main__"),
    ("cli",),
    ("eval", "port", "plan"),
    ("editor", "train"),
    ("data",),
    ("checkpoint",),
    ("weights",),
    ("models",),
    ("sharding",),
    ("runtime", "config"),
    ("report", "storage", "files", "errors", "paths"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# Of these floors the first room may see the second.
BESIDE = {("files", "errors"), ("storage", "errors"), ("storage", "files")}


def modules() -> dict[str, Path]:
    """Dotted name of every module of the package -> its file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever the import stands."""
    tree, found = ast.parse(path.read_text("utf-8")), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rb_jax":
            assert node.level == 0, f"{path}: relative import"
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                found.add(whole if whole in MODULES else str(node.module))
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name in MODULES}
    return found


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def test_every_room_has_a_floor():
    rooms = {room(module) for module in MODULES}
    assert rooms == set(FLOOR), "the floors of this test and the folders of rb_jax differ"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    here = room(module)
    for other in sorted(imports(MODULES[module])):
        there = room(other)
        allowed = here == there or FLOOR[here] < FLOOR[there] or (here, there) in BESIDE
        assert allowed, f"{module} (floor {here}) imports {other} (floor {there})"


def test_imports_do_not_go_round():
    """Also within a room; an import inside of a function counts like any other."""
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    graph = {
        module: {other for other in imports(path) if other != module}
        for module, path in MODULES.items()
        if module not in packages
    }
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_folders_do_not_go_round():
    """What a folder has of its own; a folder's front may import all of its modules."""
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}

    def folder(module: str) -> str:
        return module if module in packages else module.rpartition(".")[0]

    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        here = folder(module)
        there = {folder(other) for other in imports(path)}
        graph.setdefault(here, set()).update(o for o in there if not is_part(o, here))
    TopologicalSorter(graph).prepare()


def is_part(one: str, other: str) -> bool:
    """Whether one of them lies within the other."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def test_a_circle_or_a_way_up_would_be_seen(tmp_path):
    """What the tests above rest on: imports are found wherever they stand."""
    file = tmp_path / "x.py"
    file.write_text(
        "from rb_jax.train import loop\nimport rb_jax.files\n"
        "def f():\n    from rb_jax.config.schema import Config\n"
    )
    assert imports(file) == {"rb_jax.train.loop", "rb_jax.files", "rb_jax.config.schema"}
