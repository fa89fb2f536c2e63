from . import densenet as densenet, resnet as resnet, resnet_v2 as resnet_v2
from .data.contract import ImageContract as ImageContract
from .data.prepare import prepare as prepare
from .data.sources import load_data as load_data
from .exporting.coreml import CoreML as CoreML
from .exporting.device_report import DeviceReport as DeviceReport, device_report as device_report
from .exporting.export import Export as Export, export as export
from .exporting.folding import fold_batch_norm as fold_batch_norm
from .exporting.formats import EXPORTERS as EXPORTERS
from .exporting.inference import InferenceModel as InferenceModel
from .exporting.onnx import ONNX as ONNX
from .exporting.openvino import OpenVINO as OpenVINO
from .exporting.quantised_training import quantisation_aware as quantisation_aware
from .exporting.read import load_model as load_model
from .exporting.saved_model import SavedModel as SavedModel
from .exporting.tflite import TFLite as TFLite
from .exporting.trainable import TrainableTFLite as TrainableTFLite
from .insight.analysis import (
    count_macs as count_macs,
    count_parameters as count_parameters,
    feature_reuse as feature_reuse,
    grad_cam as grad_cam,
    gradient_norms as gradient_norms,
    summarise as summarise,
)
from .insight.drawing import (
    draw_feature_reuse as draw_feature_reuse,
    draw_grad_cam as draw_grad_cam,
    draw_gradient_norms as draw_gradient_norms,
    draw_network as draw_network,
    save_figure as save_figure,
)
from .insight.features import (
    Backbone as Backbone,
    as_backbone as as_backbone,
    feature_extractor as feature_extractor,
    freeze as freeze,
)
from .networks.builders import (
    DenseNet40_12 as DenseNet40_12,
    DenseNet100_12 as DenseNet100_12,
    DenseNet100_24 as DenseNet100_24,
    DenseNet121 as DenseNet121,
    DenseNet161 as DenseNet161,
    DenseNet169 as DenseNet169,
    DenseNet201 as DenseNet201,
    DenseNet264 as DenseNet264,
    DenseNetBC40_12 as DenseNetBC40_12,
    DenseNetBC100_12 as DenseNetBC100_12,
    DenseNetBC190_40 as DenseNetBC190_40,
    DenseNetBC250_24 as DenseNetBC250_24,
    PlainNet18 as PlainNet18,
    PlainNet20 as PlainNet20,
    PlainNet32 as PlainNet32,
    PlainNet34 as PlainNet34,
    PlainNet44 as PlainNet44,
    PlainNet56 as PlainNet56,
    PreActResNet110 as PreActResNet110,
    PreActResNet164 as PreActResNet164,
    PreActResNet1001 as PreActResNet1001,
    ResNet18 as ResNet18,
    ResNet18D as ResNet18D,
    ResNet18V2 as ResNet18V2,
    ResNet20 as ResNet20,
    ResNet32 as ResNet32,
    ResNet34 as ResNet34,
    ResNet34D as ResNet34D,
    ResNet34V2 as ResNet34V2,
    ResNet44 as ResNet44,
    ResNet50 as ResNet50,
    ResNet50D as ResNet50D,
    ResNet50V1 as ResNet50V1,
    ResNet50V2 as ResNet50V2,
    ResNet50V2_Keras as ResNet50V2_Keras,
    ResNet56 as ResNet56,
    ResNet101 as ResNet101,
    ResNet101D as ResNet101D,
    ResNet101V1 as ResNet101V1,
    ResNet101V2 as ResNet101V2,
    ResNet101V2_Keras as ResNet101V2_Keras,
    ResNet110 as ResNet110,
    ResNet152 as ResNet152,
    ResNet152D as ResNet152D,
    ResNet152V1 as ResNet152V1,
    ResNet152V2 as ResNet152V2,
    ResNet152V2_Keras as ResNet152V2_Keras,
    ResNet200 as ResNet200,
    ResNet200D as ResNet200D,
    ResNet200V2 as ResNet200V2,
    ResNet1202 as ResNet1202,
    ResNeXt50_32x4d as ResNeXt50_32x4d,
    ResNeXt101_32x8d as ResNeXt101_32x8d,
    ResNeXt101_64x4d as ResNeXt101_64x4d,
    SEResNet18 as SEResNet18,
    SEResNet34 as SEResNet34,
    SEResNet50 as SEResNet50,
    SEResNet101 as SEResNet101,
    SEResNet152 as SEResNet152,
    WideResNet50_2 as WideResNet50_2,
    WideResNet101_2 as WideResNet101_2,
)
from .networks.densenet import (
    DENSENETS as DENSENETS,
    DenseNet as DenseNet,
    DenseStyle as DenseStyle,
    dense_block as dense_block,
    dense_layer as dense_layer,
    transition_layer as transition_layer,
)
from .networks.drop_ins import SGD as SGD, BatchNormalization as BatchNormalization
from .networks.layers import Convolution as Convolution
from .networks.orders import ORDERS as ORDERS
from .networks.resnet import (
    RESNETS as RESNETS,
    ResidualStyle as ResidualStyle,
    ResNet as ResNet,
    basic_block as basic_block,
    bottleneck_block as bottleneck_block,
    identity_block as identity_block,
    projection_block as projection_block,
    residual_unit as residual_unit,
)
from .networks.resnet_v2 import (
    RESNETS_V2 as RESNETS_V2,
    preactivation_unit as preactivation_unit,
)
from .networks.zoo import (
    VARIANTS as VARIANTS,
    create_model as create_model,
    list_models as list_models,
)
from .pretrained.catalogue import list_weights as list_weights
from .pretrained.preprocessing import (
    decode_predictions as decode_predictions,
    preprocess_input as preprocess_input,
)
from .runs import transform as transform
from .training.devices import strategy as strategy
from .training.recipes import (
    RECIPES as RECIPES,
    Recipe as Recipe,
    Settings as Settings,
)
from .training.train import (
    Run as Run,
    train as train,
)

__version__: str
