"""A tiny CLAP with random weights, saved by transformers like the published models."""

from pathlib import Path

import tokenizers
import torch
import transformers

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "slow", "drum", "loop", "choir"]
RATE = 16_000


def write(folder: Path, fused: bool) -> None:
    """Write a model for windows of 1 s at RATE. With `fused`, the model also fuses longer audio."""
    text = {
        "vocab_size": 16,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 12,
    }
    audio = {
        "num_mel_bins": 32,
        "spec_size": 128,
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [1, 2],
        "hidden_size": 16,
    }
    fusion = {"enable_fusion": True, "fusion_type": "aff_2d"} if fused else {}
    torch.manual_seed(0)
    config = transformers.ClapConfig(
        text_config={**text, "projection_dim": 12},
        audio_config={**audio, **fusion, "window_size": 4, "projection_dim": 12},
        projection_dim=12,
    )
    transformers.ClapModel(config).save_pretrained(folder)
    truncation = "fusion" if fused else "rand_trunc"
    transformers.ClapFeatureExtractor(
        feature_size=32,
        sampling_rate=RATE,
        hop_length=160,
        max_length_s=1,
        fft_window_size=512,
        frequency_max=8_000,
        truncation=truncation,
    ).save_pretrained(folder)
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
