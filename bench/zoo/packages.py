"""Published architectures, from the packages that have them: torchvision, timm, transformers, where they are installed.

Networks as they are published where that takes seconds, of fewer layers where it does not; weights are random.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.zoo.measure import Architecture

FOLDER = Path("/tmp/zoo/pkgs")
"""Where `make zoo` puts packages that must not come with a PyTorch of their own."""


def available() -> dict[str, dict[str, Architecture]]:
    """The architectures of every package that is there."""
    if FOLDER.exists() and str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    rooms = {"torchvision": TORCHVISION, "timm": TIMM, "transformers": TRANSFORMERS}
    found = {name: table for name, table in rooms.items() if importlib.util.find_spec(name) is not None}
    if "torchvision" in found:
        _declare_operators()
    return found


@functools.lru_cache(None)
def _declare_operators() -> torch.library.Library:
    """The operators that torchvision describes as it is imported, where its library is for another build of PyTorch."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        try:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:  # there already
            break
    return library


def pictures(size: int, channels: int = 3) -> Callable[[int], tuple[Tensor]]:
    """One input: pictures."""
    return lambda batch: (torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(batch)),)


def noise(*shape: int) -> Callable[[int], tuple[Tensor]]:
    """One input of these shapes."""
    return lambda batch: (torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch)),)


def tokens(length: int, words: int = 50, low: int = 3) -> Callable[[int], tuple[Tensor]]:
    """One input: tokens."""
    return lambda batch: (
        torch.randint(low, words, (batch, length), generator=torch.Generator().manual_seed(batch)),
    )


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
    "MobileNet v2": _vision("depthwise, squeeze-excite", "mobilenet_v2"),
    "MobileNet v3, small": _vision("depthwise, squeeze-excite", "mobilenet_v3_small"),
    "MnasNet 0.5": _vision("depthwise, squeeze-excite", "mnasnet0_5"),
    "EfficientNet-B0": _vision("depthwise, squeeze-excite", "efficientnet_b0"),
    "RegNetY-400MF": _vision("depthwise, squeeze-excite", "regnet_y_400mf"),
    "ShuffleNet v2 0.5": _vision("shuffle", "shufflenet_v2_x0_5"),
    "ConvNeXt-T": _vision("depthwise, squeeze-excite", "convnext_tiny"),
    "FCN, ResNet-50": _vision("U-Net and segmentation", "fcn_resnet50", weights_backbone=None),
    "DeepLab v3, MobileNet v3": _vision("U-Net and segmentation", "deeplabv3_mobilenet_v3_large", weights_backbone=None),
    "LR-ASPP, MobileNet v3": _vision("U-Net and segmentation", "lraspp_mobilenet_v3_large", weights_backbone=None),
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


DEPTHWISE = "depthwise, squeeze-excite"
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

# transformers --------------------------------------------------------------------------------------------------------


def _hub(
    kind: str, name: str, config: str, inputs: Any = None, other: Any = None, axes: tuple = (), kwargs: Any = None, **sizes: Any
) -> Architecture:
    def make() -> nn.Module:
        import transformers

        made = getattr(transformers, config)(**sizes)
        made._attn_implementation = sizes.get("attn_implementation", "eager")
        return getattr(transformers, name)(made)

    return Architecture(
        kind, make, inputs or tokens(12), other or tokens(17), kwargs or (lambda batch: {"use_cache": False}), axes
    )


def _plain(batch: int) -> dict[str, Any]:
    return {}


_BERT = {
    "vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
    "max_position_embeddings": 64,
}  # fmt: skip
_LLAMA = {**_BERT, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_DEEP = {**_LLAMA, "vocab_size": 500, "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}
_GPT = {"vocab_size": 50, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
_T5 = {"vocab_size": 50, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}


def _pairs(length: int) -> Callable[[int], tuple[Tensor, ...]]:
    return lambda batch: (tokens(length)(batch)[0], torch.ones(batch, length).long(), tokens(length - 3)(batch)[0])


TRANSFORMERS = {
    "BERT": _hub("BERT", "BertForMaskedLM", "BertConfig", kwargs=_plain, **_BERT),
    "RoBERTa": _hub("BERT", "RobertaModel", "RobertaConfig", kwargs=_plain, **_BERT),
    "ALBERT": _hub("BERT", "AlbertModel", "AlbertConfig", kwargs=_plain, embedding_size=32, **_BERT),
    "ELECTRA": _hub("BERT", "ElectraModel", "ElectraConfig", kwargs=_plain, embedding_size=32, **_BERT),
    "DistilBERT": _hub(
        "BERT", "DistilBertModel", "DistilBertConfig", kwargs=_plain, vocab_size=50, dim=64, n_layers=2, n_heads=4, hidden_dim=128
    ),
    "DeBERTa v2": _hub("BERT", "DebertaV2Model", "DebertaV2Config", kwargs=_plain, **_BERT),
    "GPT-2": _hub("GPT-2", "GPT2LMHeadModel", "GPT2Config", **_GPT),
    "OPT": _hub("GPT-2", "OPTModel", "OPTConfig", vocab_size=50, hidden_size=64, num_hidden_layers=2, ffn_dim=128,
                num_attention_heads=4, max_position_embeddings=64, word_embed_proj_dim=64),  # fmt: skip
    "GPT-NeoX": _hub("GPT-2", "GPTNeoXModel", "GPTNeoXConfig", **_BERT),
    "BLOOM": _hub("GPT-2", "BloomModel", "BloomConfig", vocab_size=50, hidden_size=64, n_layer=2, n_head=4),
    "LLaMA, 2 layers": _hub("LLaMA, grouped queries", "LlamaForCausalLM", "LlamaConfig", **_LLAMA),
    **{
        f"LLaMA, {n} layers of 256": _hub(
            "LLaMA, grouped queries", "LlamaForCausalLM", "LlamaConfig", **{**_DEEP, "num_hidden_layers": n}
        )
        for n in (2, 4, 8, 16)
    },
    "Mistral": _hub("LLaMA, grouped queries", "MistralModel", "MistralConfig", **_LLAMA),
    "Qwen 2": _hub("LLaMA, grouped queries", "Qwen2Model", "Qwen2Config", **_LLAMA),
    "Qwen 3": _hub("LLaMA, grouped queries", "Qwen3Model", "Qwen3Config", head_dim=16, **_LLAMA),
    "Gemma": _hub("LLaMA, grouped queries", "GemmaModel", "GemmaConfig", head_dim=16, **_LLAMA),
    "Phi-3": _hub("LLaMA, grouped queries", "Phi3Model", "Phi3Config", **_LLAMA),
    "T5": _hub("T5", "T5ForConditionalGeneration", "T5Config", _pairs(12), _pairs(17), kwargs=lambda batch: {"decoder_input_ids": tokens(5)(batch)[0], "use_cache": False}, **_T5),
    "T5 encoder": _hub("T5", "T5EncoderModel", "T5Config", kwargs=_plain, **_T5),
    "BART": _hub("T5", "BartModel", "BartConfig", vocab_size=50, d_model=64, encoder_layers=2, decoder_layers=2,
                 encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128,
                 max_position_embeddings=64),  # fmt: skip
    "Mixtral": _hub("mixture of experts", "MixtralModel", "MixtralConfig", num_local_experts=4, **_LLAMA),
    "Switch": _hub("mixture of experts", "SwitchTransformersEncoderModel", "SwitchTransformersConfig", kwargs=_plain, num_experts=4, **_T5),
    "ViT, transformers": _hub("ViT", "ViTModel", "ViTConfig", pictures(32), pictures(32), kwargs=_plain, image_size=32, patch_size=8,
                hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128),  # fmt: skip
    "CLIP": _hub("ViT", "CLIPVisionModel", "CLIPVisionConfig", pictures(32), pictures(32), kwargs=_plain, image_size=32, patch_size=8,
                hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128),  # fmt: skip
    "SegFormer": _hub("U-Net and segmentation", "SegformerForSemanticSegmentation", "SegformerConfig", pictures(64), pictures(96), kwargs=_plain,
                hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], decoder_hidden_size=64),  # fmt: skip
    "Whisper encoder": _hub("1-D audio", "WhisperModel", "WhisperConfig", noise(80, 64), noise(80, 64), d_model=64, encoder_layers=2, decoder_layers=2,
                encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, vocab_size=50,
                max_source_positions=32, kwargs=lambda batch: {"decoder_input_ids": tokens(5)(batch)[0], "use_cache": False}, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1),  # fmt: skip
    "wav2vec 2.0": _hub("1-D audio", "Wav2Vec2Model", "Wav2Vec2Config", noise(1600), noise(2000), kwargs=_plain, vocab_size=50, hidden_size=64, num_hidden_layers=2,
                num_attention_heads=4, intermediate_size=128, conv_dim=[32] * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4),  # fmt: skip
    "Mamba": _hub("state space", "MambaModel", "MambaConfig", vocab_size=50, hidden_size=64, num_hidden_layers=2),
    "DETR": _hub("detection", "DetrModel", "DetrConfig", pictures(64), pictures(64), kwargs=_plain, d_model=64, encoder_layers=2, decoder_layers=2,
                encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, num_queries=10),  # fmt: skip
}
