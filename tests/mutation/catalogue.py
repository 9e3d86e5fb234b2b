"""The catalogue of planted faults (DESIGN.md, rule 9 of parity)."""

from __future__ import annotations

from tests.mutation import changes, compressed, patches
from tests.mutation.faults import CaptureFault, CheckpointFault, Fault, FileFault, WeightFault, first, named

FRACTIONS = {"openvino": {"timestep": "float32"}}
"""By default an OpenVINO artifact claims whole timesteps only; a lost fraction needs one that claims more."""

TOKENS = named("text_model.embeddings.token_embedding")
POSITIONS = named("text_model.embeddings.position_embedding")
WHOLE = named("")

_E = WeightFault
WEIGHTS: list[Fault] = [
    _E("element-x1.001", "one number × 1.001, first layer", "unet", named("conv_in"),
       changes.one_element(factor=1.001)),
    _E("element-x1.001-mid", "one number × 1.001, middle of the network", "unet",
       named("mid_block.resnets.0.conv1"), changes.one_element(factor=1.001)),
    _E("tensor-x1.001", "one kernel × 1.001", "unet", named("mid_block.resnets.0.conv1"),
       changes.scaled(1.001)),
    _E("matrix-x1.01", "one key matrix × 1.01", "unet", first("Linear", "attn2.to_k"), changes.scaled(1.01)),
    _E("channels-in", "two input channels swapped", "unet", named("conv_in"), changes.swapped(1)),
    _E("channels-out", "two output channels swapped", "unet", first("LoRACompatibleConv|Conv2d", "conv1"),
       changes.swapped(0)),
    _E("transposed", "square matrix transposed", "unet", first("Linear", "attn1.to_q"), changes.transposed),
    _E("sign", "sign of one kernel flipped", "vae_decoder", named("decoder.conv_in"), changes.scaled(-1)),
    _E("bfloat16", "one matrix through bfloat16", "unet", first("Linear", "ff.net.2"),
       changes.through_bfloat16),
    _E("int8", "one kernel through int8", "vae_encoder", named("encoder.conv_in"), changes.through_int8),
    _E("nan", "one NaN among the weights", "unet", named("conv_in"),
       changes.one_element(value=float("nan")), by_sight=True),
    _E("inf", "one Inf among the weights", "vae_decoder", named("decoder.conv_in"),
       changes.one_element(value=float("inf")), by_sight=True),
    _E("zero-bias", "bias zeroed", "unet", named("time_embedding.linear_1"), changes.scaled(0), "bias"),
    _E("zero-weight", "matrix zeroed", "unet", first("Linear", "attn1.to_v"), changes.scaled(0)),
    _E("zero-output", "last kernel zeroed: a constant output", "unet", named("conv_out"), changes.scaled(0)),
    _E("positions", "positions shifted by one", "text_encoder", POSITIONS, changes.shifted),
    _E("tokens", "token table shifted by one", "text_encoder", TOKENS, changes.shifted),
    _E("unused-token", "row of a token that no prompt holds zeroed", "text_encoder", TOKENS,
       changes.first_row_zeroed),
]  # fmt: skip

_C = CaptureFault
CAPTURED: list[Fault] = [
    _C("eps-group", "group norm: eps × 10", "unet", patches.eps(10), first("GroupNorm", "norm1")),
    _C("eps-layer", "layer norm: eps × 10", "unet", patches.eps(10), first("LayerNorm", "norm1")),
    _C("eps-text", "layer norm: eps ÷ 10", "text_encoder", patches.eps(0.1),
       first("LayerNorm", "layer_norm1")),
    _C("geglu-halves", "GEGLU halves swapped", "unet", patches.halves_swapped, first("GEGLU")),
    _C("no-scale", "attention scale missing", "unet", patches.attention_scale(None),
       first("Attention", "attn2")),
    _C("scale-x1.01", "attention scale × 1.01", "unet", patches.attention_scale(1.01),
       first("Attention", "attn1")),
    _C("softmax-axis", "softmax over the wrong axis", "unet", patches.softmax_axis,
       first("Attention", "attn1")),
    _C("no-mask", "no causal mask", "text_encoder", patches.no_causal_mask,
       named("text_model.encoder.layers.0.self_attn"), inside="text_model.encoder"),
    _C("mask-off-by-one", "causal mask off by one", "text_encoder", patches.mask_off_by_one,
       named("text_model.encoder.layers.0.self_attn"), inside="text_model.encoder"),
    _C("pooled-at-end", "pooled at the last token", "text_encoder", patches.pooled_at_the_end, WHOLE),
    _C("flip-sin-to-cos", "flip_sin_to_cos inverted", "unet", patches.flip_sin_to_cos, first("Timesteps")),
    _C("frequency-shift", "frequency shift 0 ↔ 1", "unet", patches.frequency_shift, first("Timesteps")),
    _C("pad-side", "downsampler pads the other side", "vae_encoder", patches.padded_on_the_other_side,
       first("Downsample2D")),
    _C("relu", "SiLU → ReLU in one block", "unet", patches.relu, first("ResnetBlock2D")),
    _C("no-skip", "skip connection dropped", "vae_decoder", patches.no_skip,
       first("ResnetBlock2D", under="decoder")),
    _C("whole-timestep", "fraction of the timestep lost", "unet", patches.whole_timestep, WHOLE, FRACTIONS),
    _C("coarse-timestep", "timestep in steps of four, as bfloat16 has", "unet", patches.coarse_timestep,
       WHOLE),
    _C("first-text", "text of the first row for all rows", "unet", patches.first_text_for_all, WHOLE),
]  # fmt: skip

_F = FileFault
FILES: list[Fault] = [
    _F("tanh-gelu", "tanh GELU for erf GELU", "unet", patches.tanh_gelu, first("GEGLU")),
    _F("bilinear", "upsampling nearest → linear", "unet", patches.bilinear, first("Upsample2D")),
    _F("padding", "padding of a convolution off by one", "unet", patches.rows_shifted, named("conv_in")),
    _F("sin-cos", "sine and cosine exchanged", "unet", patches.flip_sin_to_cos, first("Timesteps")),
    _F("all-float16", "all matrices through float16, declared float32", "unet", patches.all_through_float16,
       WHOLE),
    _F("output-float16", "output through float16, declared float32", "unet", patches.output_through_float16,
       WHOLE),
    _F("says-float16", "manifest says float16, the file holds float32", "unet", by_sight=True),
    _F("output-renamed", "output renamed", "unet", by_sight=True),
    _F("output-extra", "an extra output", "unet", by_sight=True),
    _F("output-missing", "an output missing", "text_encoder", by_sight=True),
    _F("output-dtype", "output is float16, declared float32", "unet", by_sight=True),
    _F("output-order", "outputs in another order", "text_encoder", by_sight=True),
    _F("output-exchanged", "names of two outputs exchanged", "text_encoder", by_sight=True),
    _F("baked", "sizes baked in, manifest says dynamic", "unet", by_sight=True, at_native=True),
    _F("baked-declared", "sizes baked in, manifest and file say dynamic", "unet", by_sight=True,
       at_native=True),
    _F("baked-picture", "picture size baked in, manifest and file say dynamic", "vae_decoder", by_sight=True,
       at_native=True),
    _F("changed-byte", "one bit changed, the manifest's hash not", "unet", stale=True, by_sight=True),
    _F("cut-short", "data file cut short", "vae_decoder", by_sight=True),
    _F("wrong-component", "the VAE's encoder under its decoder's name", "vae_decoder", by_sight=True),
    _F("config-heads", "config: twice the heads of attention", "unet", patches.heads(2),
       first("Attention", "attn1")),
    _F("config-groups", "config: half the groups of the norms", "unet", patches.half_the_groups,
       first("GroupNorm", "norm1")),
    _F("config-activation", "config: exact GELU for quick GELU", "text_encoder", patches.exact_gelu,
       first("QuickGELUActivation")),
    _F("config-eos", "config: another token ends the text", "text_encoder", by_sight=True),
    _F("names-exchanged", "query and key under each other's names", "unet", patches.query_for_key,
       first("Linear", "attn1.to_q")),
    _F("weights-added", "an index added that leads to other weights", "unet", by_sight=True),
    _F("name-lost", "a weight under a name that the library does not know", "unet", by_sight=True),
]  # fmt: skip

_S = CheckpointFault
CHECKPOINTS: list[Fault] = [
    _S("other-seed", "UNet of another seed", "unet", changes.reseeded),
    _S("other-text", "text encoder of another seed", "text_encoder", changes.reseeded),
    _S("other-tune", "UNet of a neighbouring fine-tune (0.1 % off)", "unet", changes.perturbed(1e-3)),
    _S("stale-data", "data file of another export (0.1 % off)", "vae_decoder", changes.perturbed(1e-3), True),
]

CATALOGUE: list[Fault] = [*WEIGHTS, *CAPTURED, *FILES, *CHECKPOINTS, *compressed.FAULTS, *compressed.ROUNDED]
BY_NAME = {fault.name: fault for fault in CATALOGUE}
