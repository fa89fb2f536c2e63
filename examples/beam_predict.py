"""Classifies images on one machine or many, with a SavedModel of this package and Apache Beam's `RunInference`.

    python examples/beam_predict.py runs/NAME/saved_model 'photos/**' answers --runner=FlinkRunner

Workers need TensorFlow and Apache Beam, but not this package: the SavedModel's signature `serve_images` takes JPEG and
PNG files and prepares each by the image contract. The answers are JSON, with one line per image, in any order. Beam's
handler of TensorFlow models opens files of Keras 2 only, so this script opens the SavedModel itself.
"""

import argparse
import json
from collections.abc import Iterator, Sequence

import apache_beam as beam
import tensorflow as tf
from apache_beam.io import fileio
from apache_beam.ml.inference.base import KeyedModelHandler, ModelHandler, RunInference
from apache_beam.options.pipeline_options import PipelineOptions

TOP = 5


class Images(ModelHandler):
    """Classifies encoded images in batches."""

    def __init__(self, path: str) -> None:
        super().__init__(max_batch_size=64)
        self.path = path

    def load_model(self) -> tf.Module:
        return tf.saved_model.load(self.path)

    def run_inference(self, batch: Sequence[bytes], model: tf.Module, inference_args=None) -> Iterator[dict]:
        names = tf.io.gfile.GFile(f"{self.path}/assets/labels.txt").read().splitlines()
        found = model.signatures["serve_images"](encoded=tf.constant(batch))
        for probabilities, valid in zip(found["outputs"].numpy(), found["valid"].numpy(), strict=True):
            if valid:
                best = (-probabilities).argsort()[:TOP]
                yield {"classes": {names[number]: float(probabilities[number]) for number in best}}
            else:
                yield {"fault": "no JPEG or PNG, or damaged"}


def read(file: fileio.ReadableFile) -> tuple[str, bytes]:
    with file.open() as opened:
        return file.metadata.path, opened.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a SavedModel")
    parser.add_argument("images", help="pattern of the image files, in the syntax of Beam")
    parser.add_argument("output", help="prefix of the output files")
    options, others = parser.parse_known_args()
    with beam.Pipeline(options=PipelineOptions(others)) as pipeline:
        _ = (
            pipeline
            | fileio.MatchFiles(options.images)
            | fileio.ReadMatches()
            | beam.Map(read)
            | RunInference(KeyedModelHandler(Images(options.model)))
            | beam.MapTuple(lambda path, answer: json.dumps({"image": path} | answer))
            | beam.io.WriteToText(options.output)
        )


if __name__ == "__main__":
    main()
