"""Facts about every variant: published counts, and those of our models.

python -m tests.zoo_facts            prints the table of variants
python -m tests.zoo_facts --write    puts it into docs/variants.md
"""

import functools
import gzip
import json
import sys
from pathlib import Path
from typing import NamedTuple

import keras
import pytest

import keras_resdense
from keras_resdense.graph import all_layers

ROOT = Path(__file__).parent.parent
TORCH = json.loads(gzip.decompress((ROOT / "tests/golden/torch_parameters.json.gz").read_bytes()))

#: Variants that are keras.applications' own.
KERAS = {
    "resnet50v1": "ResNet50",
    "resnet101v1": "ResNet101",
    "resnet152v1": "ResNet152",
    "resnet50v2_keras": "ResNet50V2",
    "resnet101v2_keras": "ResNet101V2",
    "resnet152v2_keras": "ResNet152V2",
    "densenet121": "DenseNet121",
    "densenet169": "DenseNet169",
    "densenet201": "DenseNet201",
}

#: Trainable parameters. The papers print millions (1512.03385, table 6; 1603.05027, table 4; 1608.06993,
#: table 2); the exact numbers follow from their tables, as `tests/test_zoo.py` derives.
CIFAR_PARAMETERS = {
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnet1202": 19_421_274,
    "plainnet20": 269_722,
    "plainnet32": 464_154,
    "plainnet44": 658_586,
    "plainnet56": 853_018,
    "densenet40_12": 1_019_722,
    "densenet100_12": 6_979_642,
    "densenet100_24": 27_249_082,
    "densenetbc40_12": 176_122,
    "densenetbc100_12": 769_162,
    "densenetbc250_24": 15_324_406,
    "densenetbc190_40": 25_624_430,
}


#: Those that run always, of each family; the sweep has all.
QUICK = {"resnet18", "resnet50d", "resnet50v2_keras", "densenet121", "resnet20", "resnet18v2", "densenet40_12"}


def sweep(variants, quick=QUICK):
    """Marks all variants except the quick ones for the sweep."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.sweep) for name in variants]


class Facts(NamedTuple):
    """Of one built model: its parameters, MACs, classes, and names of layers."""

    parameters: int
    macs: int
    side: int
    classes: int
    names: tuple[str, ...]


@functools.cache
def facts(variant: str) -> Facts:
    """Builds a variant with its builder's defaults and measures it."""
    keras.backend.clear_session()
    model = keras_resdense.create_model(variant)
    return Facts(
        parameters=keras_resdense.count_parameters(model),
        macs=keras_resdense.count_macs(model),
        side=model.input_shape[1],
        classes=model.output_shape[1],
        names=tuple(layer.name for layer in all_layers(model)),
    )


def proven_against(variant: str) -> str:
    """Names the libraries whose outputs ours equal, see `tests/test_parity.py`."""
    peers = TORCH.get(variant, {"peers": []})["peers"] + (["keras.applications"] if variant in KERAS else [])
    return ", ".join(peers) or "count derived from the paper"


def row(variant: str) -> str:
    """Writes a variant's row of the table."""
    (builder,) = (name for name in keras_resdense.__all__ if name.lower() == variant)
    found = facts(variant)
    return f"| `{builder}` | {found.parameters:,} | {found.macs / 1e9:.2f} | {found.side} | {proven_against(variant)} |"


def table() -> str:
    """Writes the table of variants."""
    head = ["| builder | parameters | GMACs | at | outputs proven equal to |", "|---|---:|---:|---:|---|"]
    return "\n".join([*head, *map(row, keras_resdense.list_models())])


def main() -> None:
    text = table()
    if "--write" in sys.argv:
        page = ROOT / "docs/variants.md"
        before, marker, rest = page.read_text().partition("<!-- variants -->\n")
        _, end, after = rest.partition("<!-- end of variants -->")
        page.write_text(f"{before}{marker}{text}\n{end}{after}")
    else:
        print(text)


if __name__ == "__main__":
    main()
