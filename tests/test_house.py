"""The rules of CONTRIBUTING.md that a program can check."""

import ast
import importlib
import os
import re
import shutil
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
    {"files", "graph", "checks", "names", "progress", "servers", "terminal"},
    {"data", "answers"},
    {"pretrained"},
    {"networks", "resnet", "resnet_v2", "densenet"},
    {"exporting"},
    {"training"},
    {"insight", "runs", "options"},
    {"__main__"},
)
BLOCKS = "basic_block bottleneck_block identity_block projection_block residual_unit preactivation_unit"
BLOCKS += " dense_layer dense_block transition_layer"


def imports(tree):
    """Returns the modules of the package that a module imports, at any place."""
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


def without_dense_networks(folder):
    """Copies package and tests, and deletes the modules of dense networks and every mention of them."""
    for room in ("keras_resdense", "tests"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    shutil.copytree(ROOT / "tests/golden", folder / "tests/golden", ignore=shutil.ignore_patterns("awkward"))
    shutil.copy(ROOT / "setup.cfg", folder)
    for name in ("densenet", "dense_layers", "dense_kernels"):
        (folder / f"keras_resdense/networks/{name}.py").unlink()
    mentions = {
        "__init__.pyi": r"^from .networks.densenet import \([^)]*\)\n|^    DenseNet\w+ as DenseNet\w+,\n",
        "names.py": r'^    "DenseNet\w+",\n',
        "networks/builders.py": r"^DenseNet\w+: .*\n",
        "networks/zoo.py": r"densenet, | \| densenet\.DENSENETS",
        "networks/model.py": r"dense_layers, | \| dense_layers\.DROP_INS",
    }
    for name, pattern in mentions.items():
        path = folder / "keras_resdense" / name
        path.write_text(re.sub(pattern, "", path.read_text(encoding="utf-8"), flags=re.MULTILINE), encoding="utf-8")


@pytest.mark.sweep
def test_resnets_stand_without_densenets(tmp_path):
    without_dense_networks(tmp_path)
    chosen = ["tests/test_resnet.py", "tests/test_layers.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *chosen]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


def test_modules_are_short():
    for module in TREES:
        lines = len((PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8").splitlines())
        assert lines <= 400, f"{module} has {lines} lines"


def test_init_only_re_exports():
    """The stub lists all names, and neither file has any logic."""
    body = ast.parse((PACKAGE / "__init__.py").read_text()).body
    assert all(isinstance(node, (ast.Expr, ast.Import, ast.Assign)) for node in body)
    *re_exports, version = ast.parse((PACKAGE / "__init__.pyi").read_text()).body
    names = [alias.asname for node in re_exports for alias in node.names]
    assert ast.unparse(version) == "__version__: str"
    assert sorted(names) == sorted(keras_resdense.__all__) == sorted(set(names))
    for node in re_exports:
        for alias in node.names:
            module = importlib.import_module(f"keras_resdense.{node.module or alias.name}")
            found = getattr(module, alias.name) if node.module else module
            assert alias.asname == alias.name and getattr(keras_resdense, alias.name) is found


def test_names_are_those_of_the_tables():
    assert [name.lower() for name in BUILDERS] == list(keras_resdense.VARIANTS)
    assert FORMATS == tuple(EXPORTERS)


def test_functions_have_at_most_eight_parameters():
    for module, function in functions():
        parameters = function.args
        count = len(parameters.posonlyargs + parameters.args + parameters.kwonlyargs)
        assert count <= 8 or function.name in ("create_model", "__call__"), f"{module}.{function.name} has {count}"


def test_no_keywords_are_passed_through_but_in_the_typed_builders():
    assert {(module, f.name) for module, f in functions() if f.args.kwarg} == {
        ("networks.builders", "build"),
        ("networks.zoo", "explained"),
    }


@pytest.mark.parametrize("name", BLOCKS.split())
def test_a_block_fits_in_15_lines(name):
    (function,) = (f for _, f in functions() if f.name == name)
    statements = function.body[1:]
    lines = statements[-1].end_lineno - statements[0].lineno + 1
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


@pytest.mark.parametrize("command", ["check", "format --check"])
def test_the_linter_and_the_formatter_have_nothing_to_say(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command.split(), "."], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
