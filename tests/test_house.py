"""The rules of CONTRIBUTING.md that a program can check."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import keras_resdense
from keras_resdense.exporting.formats import EXPORTERS
from keras_resdense.names import BUILDERS, FORMATS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "keras_resdense"
#: Every module by its dotted name below the package, such as "networks.resnet".
TREES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}
#: Rooms, and single files beside them, in the order in which they may know one another.
FLOORS = (
    {"files", "graph", "checks", "names", "progress", "terminal"},
    {"data"},
    {"pretrained"},
    {"networks"},
    {"exporting"},
    {"training"},
    {"insight", "runs", "options"},
    {"__main__"},
)
BLOCKS = "basic_block bottleneck_block identity_block projection_block residual_unit preactivation_unit"
BLOCKS += " dense_layer dense_block transition_layer"


def imports(tree):
    """Returns the modules of the package that a module imports, wherever in it it does."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("keras_resdense"):
            path = node.module.split(".")[1:]
            names = [".".join([*path, alias.name]) for alias in node.names]
            found |= {name if name in TREES else ".".join(path) for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("keras_resdense")}
    return found - {""}


IMPORTS = {module: imports(tree) for module, tree in TREES.items()}


def functions():
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                yield module, node


def floor(module):
    """Returns the floor of a module's room."""
    room = module.partition(".")[0]
    (number,) = (number for number, rooms in enumerate(FLOORS) if room in rooms)
    return number


def test_imports_run_one_way():
    for module, found in IMPORTS.items():
        for imported in found:
            same_room = imported.partition(".")[0] == module.partition(".")[0]
            assert imported in TREES, (module, imported)
            assert same_room or floor(imported) < floor(module), (module, imported)


def test_no_module_imports_itself_in_a_circle():
    for module in TREES:
        reached, waiting = set(), set(IMPORTS[module])
        while waiting:
            imported = waiting.pop()
            assert imported != module, module
            reached.add(imported)
            waiting |= IMPORTS[imported] - reached


def test_no_module_takes_private_names_of_another():
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("keras_resdense"):
                assert not [alias.name for alias in node.names if alias.name.startswith("_")], module


def test_resnets_stand_without_densenets():
    for module in ("networks.layers", "networks.resnet", "networks.resnet_v2"):
        assert "networks.densenet" not in IMPORTS[module]


def test_modules_are_short():
    for module in TREES:
        lines = len((PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8").splitlines())
        assert lines <= 400, f"{module} has {lines} lines"


def test_init_only_re_exports():
    """The stub says what there is; both are short of any logic."""
    body = ast.parse((PACKAGE / "__init__.py").read_text()).body
    assert all(isinstance(node, (ast.Expr, ast.Import, ast.Assign)) for node in body)
    *re_exports, version = ast.parse((PACKAGE / "__init__.pyi").read_text()).body
    names = [alias.asname for node in re_exports for alias in node.names]
    assert ast.unparse(version) == "__version__: str"
    assert sorted(names) == sorted(keras_resdense.__all__) == sorted(set(names))
    for node in re_exports:
        for alias in node.names:
            module = importlib.import_module(f"keras_resdense.{node.module}")
            assert alias.asname == alias.name and getattr(keras_resdense, alias.name) is getattr(module, alias.name)


def test_names_are_those_of_the_tables():
    assert [name.lower() for name in BUILDERS] == list(keras_resdense.VARIANTS)
    assert FORMATS == tuple(EXPORTERS)


def test_functions_have_at_most_eight_parameters():
    for module, function in functions():
        parameters = function.args
        count = len(parameters.posonlyargs + parameters.args + parameters.kwonlyargs)
        assert count <= 8 or function.name == "create_model", f"{module}.{function.name} has {count}"


def test_no_keywords_are_passed_through_but_in_the_typed_builders():
    assert {(module, f.name) for module, f in functions() if f.args.kwarg} == {("networks.zoo", "build")}


@pytest.mark.parametrize("name", BLOCKS.split())
def test_a_block_fits_in_15_lines(name):
    (function,) = (f for _, f in functions() if f.name == name)
    statements = function.body[1:]
    signature = function.body[0].lineno - function.lineno
    lines = statements[-1].end_lineno - statements[0].lineno + 1 + signature
    assert lines <= 15, f"{name} takes {lines} lines"


def test_public_functions_and_classes_are_documented():
    for name in keras_resdense.__all__:
        assert getattr(keras_resdense, name).__doc__, name


def test_depths_stand_in_tables_only():
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Tuple) and [getattr(item, "value", 0) for item in node.elts] == [3, 4, 6, 3]:
                assert module == "networks.resnet"


OFFLINE = """
import socket, sys
def refuse(*_): raise AssertionError("a connection at import time")
socket.socket.connect = socket.create_connection = refuse
import keras_resdense
assert not {"keras", "tensorflow", "numpy"} & set(sys.modules), "loaded before it is used"
import keras
before = set(sys.modules)
from keras_resdense import *
heavy = {"tensorflow_datasets", "sklearn", "matplotlib", "ai_edge_litert", "huggingface_hub", "PIL"}
loaded = {name.split(".")[0] for name in set(sys.modules) - before} & heavy
assert not loaded, loaded
"""


def test_importing_opens_no_connection_and_loads_nothing_heavy():
    subprocess.run([sys.executable, "-c", OFFLINE], check=True)
