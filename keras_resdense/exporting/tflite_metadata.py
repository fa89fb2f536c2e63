"""TFLite Metadata, which describe input, output and classes of a `.tflite` for MediaPipe Tasks and Android.

A FlatBuffer in the model's metadata entry `TFLITE_METADATA` describes the tensors, and a ZIP archive after the model
holds the associated files. Source: `metadata_schema.fbs` of MediaPipe (schema 1.5.0), repeated here as far
as it is needed, because no dependency of TensorFlow includes it.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any, TypeAlias

import flatbuffers
import numpy as np

#: A table of the schema: its name, and its fields.
Table: TypeAlias = tuple[str, dict[str, Any]]

#: The fields of each table in the order of the schema. A union has two fields, its type and its value.
_FIELDS = {
    "ModelMetadata": "name description version subgraph_metadata author license associated_files min_parser_version",
    "SubGraphMetadata": "name description input_tensor_metadata output_tensor_metadata",
    "TensorMetadata": "name description dimension_names content process_units stats associated_files",
    "Content": "content_properties_type content_properties",
    "ImageProperties": "color_space default_size",
    "ImageSize": "width height",
    "ProcessUnit": "options_type options",
    "NormalizationOptions": "mean std",
    "Stats": "max min",
    "AssociatedFile": "name description type",
}
_IMAGE_PROPERTIES, _NORMALIZATION_OPTIONS = 2, 1
#: Colour spaces by the number of channels; the schema has no others.
_COLOR_SPACES = {3: 1, 1: 2}
_TENSOR_AXIS_LABELS = 2
#: The fields above exist since the first version of the schema.
_MIN_PARSER_VERSION = "1.0.0"


def image_input(name: str, description: str, shape: tuple[int, int, int], pixels: bool) -> Table:
    """Describes an input of images.

    Args:
        name: Name of the tensor.
        description: Description of the tensor.
        shape: `(height, width, channels)`.
        pixels: Whether it takes pixels 0–255. If not, the metadata do not describe the normalisation.
    """
    height, width, channels = shape
    size = ("ImageSize", {"width": width, "height": height})
    image = ("ImageProperties", {"color_space": _COLOR_SPACES.get(channels, 0), "default_size": size})
    content = {"content_properties_type": _IMAGE_PROPERTIES, "content_properties": image}
    fields = {"name": name, "description": description, "content": ("Content", content)}
    if pixels:
        options = ("NormalizationOptions", {"mean": [0.0], "std": [1.0]})
        fields["process_units"] = [("ProcessUnit", {"options_type": _NORMALIZATION_OPTIONS, "options": options})]
    return "TensorMetadata", fields


def class_output(name: str, description: str, labels_file: str | None, probabilities: bool) -> Table:
    """Describes an output with one score per class.

    Args:
        name: Name of the tensor.
        description: Description of the tensor.
        labels_file: Associated file of the class names, one per line; None without names.
        probabilities: Whether the scores are from 0 to 1.
    """
    fields = {"name": name, "description": description}
    if probabilities:
        fields["stats"] = ("Stats", {"max": [1.0], "min": [0.0]})
    if labels_file:
        file = {"name": labels_file, "description": "Names of the classes, one a line.", "type": _TENSOR_AXIS_LABELS}
        fields["associated_files"] = [("AssociatedFile", file)]
    return "TensorMetadata", fields


def model_metadata(about: Mapping[str, str], source: Table, target: Table, files: Mapping[str, str]) -> Table:
    """Describes a model.

    Args:
        about: Any of `name`, `description`, `version`, `author` and `license`.
        source: Result of `image_input`.
        target: Result of `class_output`.
        files: Names and descriptions of the model's associated files.
    """
    subgraph = ("SubGraphMetadata", {"input_tensor_metadata": [source], "output_tensor_metadata": [target]})
    fields = {**about, "subgraph_metadata": [subgraph], "min_parser_version": _MIN_PARSER_VERSION}
    if files:
        files = [("AssociatedFile", {"name": name, "description": words}) for name, words in files.items()]
        fields["associated_files"] = files
    return "ModelMetadata", fields


def describe(model: bytes, names: tuple[str, str], metadata: Table, files: Mapping[str, str]) -> bytes:
    """Adds metadata to a model.

    Args:
        model: A `.tflite` whose first graph has one input and one output.
        names: New names of these two.
        metadata: Result of `model_metadata`.
        files: Names and texts of the associated files.
    """
    from ai_edge_litert import schema_py_generated as schema

    network = schema.ModelT.InitFromPackedBuf(model, 0)
    graph = network.subgraphs[0]
    for tensor, name in zip([*graph.inputs, *graph.outputs], names, strict=True):
        graph.tensors[tensor].name = name
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(_finished(metadata), "uint8")
    network.buffers.append(buffer)
    entry.name, entry.buffer = "TFLITE_METADATA", len(network.buffers) - 1
    network.metadata = [*(network.metadata or []), entry]
    builder = _Aligned(len(model) + len(buffer.data))
    builder.Finish(network.Pack(builder), b"TFL3")
    file = io.BytesIO(builder.Output())
    with zipfile.ZipFile(file, "a") as archive:
        for name, text in files.items():
            # With a fixed time, the same model gives the same file.
            archive.writestr(zipfile.ZipInfo(name), text)
    return file.getvalue()


class _Aligned(flatbuffers.Builder):
    """Aligns weights to 16 bytes, which TFLite's schema requires and its generated Python code does not do."""

    def StartVector(self, elemSize: int, numElems: int, alignment: int) -> int:  # noqa: N802, N803
        return super().StartVector(elemSize, numElems, 16 if elemSize == 1 else alignment)


def _finished(metadata: Table) -> bytes:
    builder = flatbuffers.Builder()
    builder.Finish(_write(builder, metadata), b"M001")
    return bytes(builder.Output())


def _write(builder: flatbuffers.Builder, value: str | list | Table) -> int:
    """Writes a string, a vector of floats or tables, or a table, and returns its offset."""
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, list):
        floats = isinstance(value[0], float)
        parts = value if floats else [_write(builder, part) for part in value]
        builder.StartVector(4, len(parts), 4)
        for part in reversed(parts):
            (builder.PrependFloat32 if floats else builder.PrependUOffsetTRelative)(part)
        return builder.EndVector()
    kind, fields = value
    slots = _FIELDS[kind].split()
    # Children are written before their table.
    stored = {name: part if isinstance(part, int) else _write(builder, part) for name, part in fields.items()}
    builder.StartObject(len(slots))
    for name, part in fields.items():
        if not isinstance(part, int):
            builder.PrependUOffsetTRelativeSlot(slots.index(name), stored[name], 0)
        elif kind == "ImageSize":
            builder.PrependUint32Slot(slots.index(name), part, 0)
        else:
            builder.PrependUint8Slot(slots.index(name), part, 0)
    return builder.EndObject()
