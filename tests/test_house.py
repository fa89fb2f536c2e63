"""The rules of CONTRIBUTING.md that a program can check."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import keras_resdense

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "keras_resdense"
TREES = {path.stem: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
FLOORS = [
    {"startup", "kernels", "model"},
    {"layers"},
    {"resnet", "resnet_v2", "densenet"},
    {"weights", "catalogue", "preprocessing"},
    {"zoo"},
]
MODELS = {"resnet", "resnet_v2", "densenet", "zoo"}
BLOCKS = "basic_block bottleneck_block identity_block projection_block residual_unit preactivation_unit"
BLOCKS += " dense_layer dense_block transition_layer"


def imports(tree):
    """Returns the modules of the package that a module imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("keras_resdense"):
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found & set(TREES)


def functions():
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                yield module, node


def floor(module):
    return next((number for number, modules in enumerate(FLOORS) if module in modules), len(FLOORS))


@pytest.mark.parametrize("module", sorted(set(TREES) - {"__init__", "__main__"}))
def test_imports_run_one_way(module):
    assert all(floor(imported) <= floor(module) for imported in imports(TREES[module]))
    assert "__main__" not in imports(TREES[module])


@pytest.mark.parametrize("module", ["data", "recipes", "export", "folding", "analysis"])
def test_capabilities_import_no_model(module):
    assert not imports(TREES[module]) & MODELS


def test_resnets_stand_without_densenets():
    for module in ("layers", "resnet", "resnet_v2"):
        assert "densenet" not in imports(TREES[module])


def test_init_only_re_exports():
    body = TREES["__init__"].body
    assert all(isinstance(node, (ast.Expr, ast.ImportFrom, ast.Assign)) for node in body)
    assert sorted(keras_resdense.__all__) == sorted(set(keras_resdense.__all__))
    assert all(hasattr(keras_resdense, name) for name in keras_resdense.__all__)


def test_functions_have_at_most_eight_parameters():
    for module, function in functions():
        parameters = function.args
        count = len(parameters.posonlyargs + parameters.args + parameters.kwonlyargs)
        assert count <= 8 or function.name == "create_model", f"{module}.{function.name} has {count}"


def test_no_keywords_are_passed_through_but_in_the_typed_builders():
    assert {(module, f.name) for module, f in functions() if f.args.kwarg} == {("zoo", "build")}


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
                assert module == "resnet"


OFFLINE = """
import socket, sys
def refuse(*_): raise AssertionError("a connection at import time")
socket.socket.connect = socket.create_connection = refuse
import keras
before = set(sys.modules)
import keras_resdense
heavy = {"tensorflow_datasets", "sklearn", "matplotlib", "ai_edge_litert", "huggingface_hub", "PIL"}
loaded = {name.split(".")[0] for name in set(sys.modules) - before} & heavy
assert not loaded, loaded
"""


def test_importing_opens_no_connection_and_loads_nothing_heavy():
    subprocess.run([sys.executable, "-c", OFFLINE], check=True)
