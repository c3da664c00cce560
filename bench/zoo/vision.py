"""Architectures for pictures and videos: torchvision's and timm's."""

from __future__ import annotations

from typing import Any

from torch import nn

from bench.zoo.inputs import DEPTHWISE, SEGMENTATION, noise, pictures
from bench.zoo.measure import Architecture

# torchvision ---------------------------------------------------------------------------------------------------------


def _vision(kind: str, name: str, size: int = 64, other: int = 96, **options: Any) -> Architecture:
    def make() -> nn.Module:
        import torchvision

        options.setdefault("num_classes", 10)
        return torchvision.models.get_model(name, weights=None, **options)

    return Architecture(kind, make, pictures(size), pictures(other))


def _video(kind: str, name: str, **options: Any) -> Architecture:
    return Architecture(
        kind, _vision(kind, name, num_classes=10, **options).make, noise(3, 8, 32, 32), noise(3, 8, 48, 48)
    )


def _vision_transformer() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(64, 16, num_layers=4, num_heads=6, hidden_dim=384, mlp_dim=768, num_classes=10)


TORCHVISION = {
    "AlexNet": _vision("plain", "alexnet"),
    "VGG-11": _vision("plain", "vgg11", 32, 48),
    "VGG-11, batch norm": _vision("plain", "vgg11_bn", 32, 48),
    "ResNet-18": _vision("residual", "resnet18"),
    "ResNet-50": _vision("residual", "resnet50"),
    "ResNeXt-50 32x4d": _vision("residual", "resnext50_32x4d"),
    "Wide ResNet-50": _vision("residual", "wide_resnet50_2"),
    "DenseNet-121": _vision("dense", "densenet121"),
    "GoogLeNet": _vision("inception", "googlenet", aux_logits=True, init_weights=False),
    "Inception v3": _vision("inception", "inception_v3", 96, 128, aux_logits=False, init_weights=False),
    "SqueezeNet 1.1": _vision("plain", "squeezenet1_1"),
    "MobileNet v2": _vision(DEPTHWISE, "mobilenet_v2"),
    "MobileNet v3, small": _vision(DEPTHWISE, "mobilenet_v3_small"),
    "MnasNet 0.5": _vision(DEPTHWISE, "mnasnet0_5"),
    "EfficientNet-B0": _vision(DEPTHWISE, "efficientnet_b0"),
    "RegNetY-400MF": _vision(DEPTHWISE, "regnet_y_400mf"),
    "ShuffleNet v2 0.5": _vision("shuffle", "shufflenet_v2_x0_5"),
    "ConvNeXt-T": _vision(DEPTHWISE, "convnext_tiny"),
    "FCN, ResNet-50": _vision(SEGMENTATION, "fcn_resnet50", weights_backbone=None),
    "DeepLab v3, MobileNet v3": _vision(SEGMENTATION, "deeplabv3_mobilenet_v3_large", weights_backbone=None),
    "LR-ASPP, MobileNet v3": _vision(SEGMENTATION, "lraspp_mobilenet_v3_large", weights_backbone=None),
    "ResNet3D-18": _video("3-D", "r3d_18"),
    "ResNet(2+1)D-18": _video("3-D", "r2plus1d_18"),
    "ViT, 4 layers": Architecture("ViT", _vision_transformer, pictures(64), pictures(64)),
    "Swin-T": _vision("Swin", "swin_t"),
    "Swin v2-T": _vision("Swin", "swin_v2_t"),
    "MaxViT-T": _vision("ViT", "maxvit_t", 224, 224),
}

# timm ----------------------------------------------------------------------------------------------------------------


def _timm(kind: str, name: str, size: int = 64, other: int | None = 96, **options: Any) -> Architecture:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=10, **options)

    return Architecture(kind, make, pictures(size), pictures(other or size))


TIMM = {
    "SE-ResNet-18": _timm("residual", "seresnet18"),
    "Res2Net-50": _timm("residual", "res2net50_26w_4s"),
    "SK-ResNet-18": _timm("residual", "skresnet18"),
    "ResNeSt-14": _timm("residual", "resnest14d"),
    "CSPResNet-50": _timm("residual", "cspresnet50"),
    "DarkNet-53": _timm("residual", "darknet53"),
    "DLA-34": _timm("residual", "dla34"),
    "HRNet-W18, small": _timm("residual", "hrnet_w18_small"),
    "RepVGG-A0": _timm("plain", "repvgg_a0"),
    "NFNet, light": _timm("residual", "nf_resnet26"),
    "DPN-68": _timm("dense", "dpn68"),
    "VoVNet-19": _timm("dense", "ese_vovnet19b_dw"),
    "Inception v4": _timm("inception", "inception_v4", 96, 128),
    "Xception-41": _timm(DEPTHWISE, "xception41"),
    "GhostNet": _timm(DEPTHWISE, "ghostnet_100"),
    "LCNet-050": _timm(DEPTHWISE, "lcnet_050"),
    "MobileNet v4, small": _timm(DEPTHWISE, "mobilenetv4_conv_small"),
    "ConvNeXt v2, atto": _timm(DEPTHWISE, "convnextv2_atto"),
    "ConvMixer-768": _timm("mixer", "convmixer_768_32"),
    "StarNet-S1": _timm(DEPTHWISE, "starnet_s1"),
    "MLP-Mixer-S/32": _timm("mixer", "mixer_s32_224", 64, None, img_size=64),
    "ResMLP-12": _timm("mixer", "resmlp_12_224", 64, None, img_size=64),
    "gMLP-Ti": _timm("mixer", "gmlp_ti16_224", 64, None, img_size=64),
    "PoolFormer-S12": _timm("mixer", "poolformer_s12"),
    "DeiT-T": _timm("ViT", "deit_tiny_patch16_224", 64, None, img_size=64),
    "BEiT-B, 2 layers": _timm("ViT", "beit_base_patch16_224", 64, None, img_size=64, depth=2),
    "EVA-02-T": _timm("ViT", "eva02_tiny_patch14_224", 56, None, img_size=56),
    "CaiT-XXS": _timm("ViT", "cait_xxs24_224", 64, None, img_size=64, depth=4),
    "XCiT-nano": _timm("ViT", "xcit_nano_12_p16_224", 64, None, img_size=64),
    "PiT-Ti": _timm("ViT", "pit_ti_224", 224, None),
    "LeViT-128S": _timm("ViT", "levit_128s", 224, None),
    "MobileViT-XXS": _timm("ViT", "mobilevit_xxs", 64, 96),
    "EdgeNeXt-XXS": _timm("ViT", "edgenext_xx_small", 64, 96),
    "EfficientViT-B0": _timm("ViT", "efficientvit_b0", 64, 96),
    "FastViT-T8": _timm("ViT", "fastvit_t8", 64, None),
    "Twins-SVT-S": _timm("Swin", "twins_svt_small", 224, None),
    "Swin-T, timm": _timm("Swin", "swin_tiny_patch4_window7_224", 224, None),
}
