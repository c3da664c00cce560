"""Architectures of transformers: for text, some for sound and pictures. Two layers, where depth is not the point."""

from __future__ import annotations

from typing import Any

from torch import nn

from bench.zoo.inputs import SEGMENTATION, noise, pictures, tokens
from bench.zoo.measure import Architecture

GROUPED = "LLaMA, grouped queries"


def _hub(
    kind: str,
    name: str,
    config: str,
    inputs: Any = None,
    other: Any = None,
    axes: Any = None,
    kwargs: Any = None,
    **sizes: Any,
) -> Architecture:
    def make() -> nn.Module:
        import transformers

        made = getattr(transformers, config)(**sizes)
        made._attn_implementation = sizes.get("attn_implementation", "eager")
        return getattr(transformers, name)(made)

    return Architecture(
        kind,
        make,
        inputs or tokens(12),
        other or tokens(17),
        kwargs or (lambda batch: {"use_cache": False}),
        axes or {},
    )


def _decoding(batch: int) -> dict[str, Any]:
    return {"decoder_input_ids": tokens(5)(batch)[0], "use_cache": False}


def _plain(batch: int) -> dict[str, Any]:
    return {}


_BERT = {
    "vocab_size": 50,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}
_LLAMA = {**_BERT, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_DEEP = {**_LLAMA, "vocab_size": 500, "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}
_GPT = {"vocab_size": 50, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
_T5 = {"vocab_size": 50, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}


TRANSFORMERS = {
    "BERT": _hub("BERT", "BertForMaskedLM", "BertConfig", kwargs=_plain, **_BERT),
    "RoBERTa": _hub("BERT", "RobertaModel", "RobertaConfig", kwargs=_plain, **_BERT),
    "ALBERT": _hub("BERT", "AlbertModel", "AlbertConfig", kwargs=_plain, embedding_size=32, **_BERT),
    "ELECTRA": _hub("BERT", "ElectraModel", "ElectraConfig", kwargs=_plain, embedding_size=32, **_BERT),
    "DistilBERT": _hub(
        "BERT",
        "DistilBertModel",
        "DistilBertConfig",
        kwargs=_plain,
        vocab_size=50,
        dim=64,
        n_layers=2,
        n_heads=4,
        hidden_dim=128,
    ),
    "DeBERTa v2": _hub("BERT", "DebertaV2Model", "DebertaV2Config", kwargs=_plain, **_BERT),
    "GPT-2": _hub("GPT-2", "GPT2LMHeadModel", "GPT2Config", **_GPT),
    "OPT": _hub(
        "GPT-2",
        "OPTModel",
        "OPTConfig",
        vocab_size=50,
        hidden_size=64,
        num_hidden_layers=2,
        ffn_dim=128,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=64,
    ),
    "GPT-NeoX": _hub("GPT-2", "GPTNeoXModel", "GPTNeoXConfig", **_BERT),
    "BLOOM": _hub("GPT-2", "BloomModel", "BloomConfig", vocab_size=50, hidden_size=64, n_layer=2, n_head=4),
    "LLaMA, 2 layers": _hub(GROUPED, "LlamaForCausalLM", "LlamaConfig", **_LLAMA),
    **{
        f"LLaMA, {n} layers of 256": _hub(
            "LLaMA, grouped queries", "LlamaForCausalLM", "LlamaConfig", **{**_DEEP, "num_hidden_layers": n}
        )
        for n in (2, 4, 8, 16)
    },
    "Mistral": _hub(GROUPED, "MistralModel", "MistralConfig", **_LLAMA),
    "Qwen 2": _hub(GROUPED, "Qwen2Model", "Qwen2Config", **_LLAMA),
    "Qwen 3": _hub(GROUPED, "Qwen3Model", "Qwen3Config", head_dim=16, **_LLAMA),
    "Gemma": _hub(GROUPED, "GemmaModel", "GemmaConfig", head_dim=16, **_LLAMA),
    "Phi-3": _hub(GROUPED, "Phi3Model", "Phi3Config", **_LLAMA),
    "T5": _hub(
        "T5",
        "T5ForConditionalGeneration",
        "T5Config",
        tokens(12),
        tokens(17),
        kwargs=_decoding,
        **_T5,
    ),
    "T5 encoder": _hub("T5", "T5EncoderModel", "T5Config", kwargs=_plain, **_T5),
    "BART": _hub(
        "T5",
        "BartModel",
        "BartConfig",
        vocab_size=50,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_position_embeddings=64,
    ),
    "Mixtral": _hub("mixture of experts", "MixtralModel", "MixtralConfig", num_local_experts=4, **_LLAMA),
    "Switch": _hub(
        "mixture of experts",
        "SwitchTransformersEncoderModel",
        "SwitchTransformersConfig",
        kwargs=_plain,
        num_experts=4,
        **_T5,
    ),
    "ViT, transformers": _hub(
        "ViT",
        "ViTModel",
        "ViTConfig",
        pictures(32),
        pictures(32),
        kwargs=_plain,
        image_size=32,
        patch_size=8,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
    ),
    "CLIP": _hub(
        "ViT",
        "CLIPVisionModel",
        "CLIPVisionConfig",
        pictures(32),
        pictures(32),
        kwargs=_plain,
        image_size=32,
        patch_size=8,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
    ),
    "SegFormer": _hub(
        SEGMENTATION,
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        pictures(64),
        pictures(96),
        kwargs=_plain,
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 1, 1],
        decoder_hidden_size=64,
    ),
    "Whisper encoder": _hub(
        "1-D audio",
        "WhisperModel",
        "WhisperConfig",
        noise(80, 64),
        noise(80, 64),
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        vocab_size=50,
        max_source_positions=32,
        kwargs=_decoding,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    ),
    "wav2vec 2.0": _hub(
        "1-D audio",
        "Wav2Vec2Model",
        "Wav2Vec2Config",
        noise(8000),
        noise(9600),
        kwargs=_plain,
        vocab_size=50,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        conv_dim=[32] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    ),
    "Mamba": _hub("state space", "MambaModel", "MambaConfig", vocab_size=50, hidden_size=64, num_hidden_layers=2),
    "DETR": _hub(
        "detection",
        "DetrModel",
        "DetrConfig",
        pictures(64),
        pictures(64),
        kwargs=_plain,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        num_queries=10,
    ),
}
