"""Builds the networks of the contests with each library."""

import dataclasses
from pathlib import Path

#: Peers' functions for networks that have other names there.
KERAS_APPLICATIONS = {
    "resnet50v1": "ResNet50",
    "resnet101v1": "ResNet101",
    "resnet50v2_keras": "ResNet50V2",
    "densenet121": "DenseNet121",
    "densenet201": "DenseNet201",
}
KERAS_HUB_RESNETS = {"resnet18": ((2, 2, 2, 2), "basic_block"), "resnet50": ((3, 4, 6, 3), "bottleneck_block")}
KERAS_HUB_DENSENETS = {"densenet121": (6, 12, 24, 16)}
CIFAR_RESNETS = {"resnet20": (3, 3, 3)}
CIFAR_DENSENETS = {"densenetbc40_12": (6, 6, 6), "densenetbc100_12": (16, 16, 16)}
#: Name of the file with our network for plain Keras.
PLAIN = "plain.keras"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Task of one process.

    Attributes:
        contestant: Name of a row of `CONTESTANTS`.
        task: "train" or "predict", or "write" for files that other runs read.
        network: Our name of the network.
        side: Height and width of the images, in pixels.
        batch: Number of images in a batch.
        classes: Number of classes.
        steps: Number of steps to time.
        folder: Folder of the files.
        depths: Depths of the stages; empty for those of the network.
    """

    contestant: str
    task: str
    network: str
    side: int
    batch: int
    classes: int
    steps: int
    folder: str
    depths: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.side, self.side, 3

    def file(self, name: str) -> Path:
        """Returns the path of a file that one process writes and others read."""
        return Path(self.folder) / f"{self.network}_{self.side}_{self.batch}_{name}"


def our_row(job: Job):
    import keras_resdense

    row = keras_resdense.VARIANTS[job.network]
    return dataclasses.replace(row, depths=tuple(job.depths)) if job.depths else row


def ours(job: Job):
    import keras_resdense

    return keras_resdense.create_model(our_row(job), input_shape=job.shape, classes=job.classes)


def frugal(job: Job):
    import keras_resdense

    row = dataclasses.replace(our_row(job), memory_efficient=True)
    return keras_resdense.create_model(row, input_shape=job.shape, classes=job.classes)


def folded(job: Job):
    import keras_resdense

    return keras_resdense.fold_batch_norm(ours(job))


def plain_keras(job: Job):
    """Returns our network as plain Keras opens it, without the package."""
    import keras

    return keras.saving.load_model(job.file(PLAIN), compile=False)


def keras_applications(job: Job):
    import keras

    build = getattr(keras.applications, KERAS_APPLICATIONS[job.network])
    return build(weights=None, input_shape=job.shape, classes=job.classes)


def keras_hub(job: Job):
    from keras_hub import models

    if job.network in KERAS_HUB_DENSENETS:
        backbone = models.DenseNetBackbone(KERAS_HUB_DENSENETS[job.network], image_shape=job.shape)
        return models.DenseNetImageClassifier(backbone, job.classes, activation="softmax")
    depths, block = KERAS_HUB_RESNETS[job.network]
    backbone = models.ResNetBackbone([64], [7], [64, 128, 256, 512], depths, [1, 2, 2, 2], block, image_shape=job.shape)
    return models.ResNetImageClassifier(backbone, job.classes, activation="softmax")


def torchvision(job: Job):
    import torchvision

    return torchvision.models.get_model(job.network, num_classes=job.classes)


def timm(job: Job):
    import timm

    return timm.create_model(job.network, num_classes=job.classes)


def cifar(job: Job):
    """Builds a network for small images, which PyTorch's libraries lack, from torchvision's parts."""
    import torch
    from torch import nn
    from torchvision.models import DenseNet
    from torchvision.models.resnet import BasicBlock

    if job.network in CIFAR_DENSENETS:
        model = DenseNet(12, CIFAR_DENSENETS[job.network], num_init_features=24, num_classes=job.classes)
        model.features.conv0 = nn.Conv2d(3, 24, 3, padding=1, bias=False)
        model.features.norm0 = model.features.relu0 = model.features.pool0 = nn.Identity()
        return model

    class Shortcut(nn.Module):
        """Option A of 1512.03385, section 3.3: every second pixel, and zeros for new channels."""

        def forward(self, x):
            return torch.cat([x[:, :, ::2, ::2], torch.zeros_like(x[:, :, ::2, ::2])], 1)

    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
    for stage, depth in enumerate(CIFAR_RESNETS[job.network]):
        filters = 16 * 2**stage
        for index in range(depth):
            strided = stage > 0 and index == 0
            model.append(BasicBlock(filters // 2, filters, 2, Shortcut()) if strided else BasicBlock(filters, filters))
    return model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(filters, job.classes)])
