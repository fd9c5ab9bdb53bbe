"""The floors of the package: no module imports one of a higher floor, not even for its annotations.

Each line of `FLOORS` is a floor; modules may import from their own floor and from those above it in the list, as long
as there is no circle. A name stands for a module, or for a folder with all that is in it and not named by itself.
"""

import ast
import pathlib

import pytest

import jax_maddness

FLOORS = """
core.arguments core.epilogue core.jaxprs core.pytrees core.int8 core.machine
core.trees
core.terms.base
core.atomic core.types core.ffi core.memory core.mapped core.archive core.validate
core.products
core.stack core.aggregate core.encode core.look_up core.greatest
core.terms
core
testing
learn.config learn.progress learn.validate
learn.data
learn.tables
learn.methods.objective learn.methods.learned
learn.methods.groups learn.methods.splits learn.methods.projections
learn.methods
learn
retrieval
decoding
doctor
nn.layers
nn.models
nn.batches nn.nmse nn.fingerprint
nn.rules
nn.units
nn.replacement
nn.planning
nn.pruning
nn.tuning
nn.capture
nn.calibrate nn.diff
nn
"""

PACKAGE = pathlib.Path(jax_maddness.__file__).parent
LEVELS = {name: level for level, line in enumerate(FLOORS.split("\n")) for name in line.split()}
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name not in ("__main__.py",) and path != PACKAGE / "__init__.py"
}


def floor(module):
    """The level of the longest prefix of `module` that has one."""
    parts = module.split(".")
    for size in range(len(parts), 0, -1):
        if ".".join(parts[:size]) in LEVELS:
            return LEVELS[".".join(parts[:size])]
    raise AssertionError(f"{module} is on no floor: add it to FLOORS")


def imported(path):
    """The modules of the package that a file imports, wherever in the file: in functions and for annotations too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.removeprefix("jax_maddness.") for name in names} & set(MODULES)
    return {name for name in found if MODULES[name].name != "__init__.py"}


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_one_of_a_higher_floor(module):
    if MODULES[module].name == "__init__.py":
        return  # a table of contents of what is below it
    higher = {other for other in imported(MODULES[module]) if floor(other) > floor(module)}
    assert not higher


def test_there_is_no_circle():
    imports = {module: imported(path) for module, path in MODULES.items()}
    while imports:
        leaves = [module for module, others in imports.items() if not others & set(imports)]
        assert leaves, f"these import each other in a circle: {sorted(imports)}"
        for module in leaves:
            del imports[module]
