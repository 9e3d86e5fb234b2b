"""What `techniques_on_gpu` measures: the name of a row → the techniques of its pipeline."""

from __future__ import annotations

from typing import Any

FP16: dict[str, Any] = {"precision": {"dtype": "float16"}}
BF16: dict[str, Any] = {"precision": {"dtype": "bfloat16"}}
CUDNN: dict[str, Any] = {"attention-backend": {"backend": "cudnn"}}
QUICK: list[Any] = [FP16, "channels-last", "cudnn-benchmark", CUDNN]
"""What each row by hand begins with."""
GEMM: dict[str, Any] = {"max_autotune_gemm": True, "max_autotune_gemm_backends": "ATEN,TRITON"}
ACCUMULATE: dict[str, Any] = {"matmul": {"allow_fp16_accumulation": True}}
UNET: dict[str, list[Any]] = {
    "float32": [],
    "tf32": ["tf32"],
    "float16": [FP16],
    "bfloat16": [BF16],
    "channels-last": [FP16, "channels-last"],
    "attention: flash": [FP16, {"attention-backend": {"backend": "flash"}}],
    "attention: cudnn": [FP16, {"attention-backend": {"backend": "cudnn"}}],
    "attention: math": [FP16, {"attention-backend": {"backend": "math"}}],
    "xformers": [FP16, "xformers"],
    "fused-qkv": [FP16, "fused-qkv"],
    "token-merging 0.5": [FP16, "token-merging"],
    "deep-cache 3": [FP16, "deep-cache"],
    "t-gate 10": [FP16, {"t-gate": {"gate": 10}}],
    "trace": [FP16, "channels-last", "trace"],
    "trace, frozen": [FP16, "channels-last", {"trace": {"freeze": True}}],
    "compile, regional": [FP16, "channels-last", {"compile": {"regional": True}}],
    "compile": [FP16, "channels-last", {"compile": {"fullgraph": True}}],
    "compile, reduce-overhead": [
        FP16, "channels-last", {"compile": {"mode": "reduce-overhead", "fullgraph": True}},
    ],
    "compile, max-autotune + fused-qkv": [
        FP16, "channels-last", "fused-qkv", {"compile": {"mode": "max-autotune", "fullgraph": True}},
    ],
    "compile, reduce-overhead + cudnn": [
        FP16, "channels-last", {"attention-backend": {"backend": "cudnn"}},
        {"compile": {"mode": "reduce-overhead", "fullgraph": True}},
    ],
    "tuned: cudnn-benchmark + reduce-overhead": [
        FP16, "channels-last", "cudnn-benchmark", {"attention-backend": {"backend": "cudnn"}},
        {"compile": {"mode": "reduce-overhead", "fullgraph": True}},
    ],
    "tuned: the same, fused-qkv, 1×1 as products": [
        FP16, "channels-last", "cudnn-benchmark", {"attention-backend": {"backend": "cudnn"}}, "fused-qkv",
        {"compile": {"mode": "reduce-overhead", "fullgraph": True, "tuned": True}},
    ],
    "tuned: the same, max-autotune": [
        FP16, "channels-last", "cudnn-benchmark", {"attention-backend": {"backend": "cudnn"}}, "fused-qkv",
        {"compile": {"mode": "max-autotune", "fullgraph": True, "tuned": True}},
    ],
    "by hand: eager": [*QUICK, "cuda-graph"],
    "by hand: compile": [*QUICK, {"compile": {"fullgraph": True}}, "cuda-graph"],
    "by hand: compile, fused-qkv": [*QUICK, "fused-qkv", {"compile": {"fullgraph": True}}, "cuda-graph"],
    "by hand: compile, frozen": [
        *QUICK, {"inductor": {"freezing": True}}, {"compile": {"fullgraph": True}}, "cuda-graph",
    ],
    "by hand: compile, tiles searched": [
        *QUICK, "fused-qkv", {"compile": {"fullgraph": True, "tuned": True}}, "cuda-graph",
    ],
    "by hand, searched: products": [
        *QUICK, ACCUMULATE, {"inductor": GEMM}, "fused-qkv", {"compile": {"fullgraph": True}}, "cuda-graph",
    ],
    "by hand, searched: products, tiles, frozen": [
        *QUICK, ACCUMULATE, {"inductor": {**GEMM, "freezing": True}},
        {"compile": {"fullgraph": True, "tuned": True}}, "cuda-graph",
    ],
    "by hand, searched: max-autotune-no-cudagraphs": [
        *QUICK, ACCUMULATE, "fused-qkv",
        {"compile": {"fullgraph": True, "mode": "max-autotune-no-cudagraphs"}}, "cuda-graph",
    ],
    "fp8 + compile, reduce-overhead": [
        BF16, "fp8", {"compile": {"mode": "reduce-overhead", "fullgraph": True}},
    ],
    "int8 + compile, reduce-overhead": [
        BF16, "int8", {"compile": {"mode": "reduce-overhead", "fullgraph": True}},
    ],
    "int8 + compile": [BF16, "int8", {"compile": {"fullgraph": True}}],
    "fp8 + compile": [BF16, "fp8", {"compile": {"fullgraph": True}}],
    "layerwise-casting": [FP16, "layerwise-casting"],
    "model-offload": [FP16, "model-offload"],
    "group-offload": [FP16, "group-offload"],
    "sequential-offload": [FP16, "sequential-offload"],
    "device-map": [FP16, "device-map"],
}  # fmt: skip
FLUX: dict[str, list[Any]] = {
    "bfloat16": [BF16],
    "attention: cudnn": [BF16, {"attention-backend": {"backend": "cudnn"}}],
    "fused-qkv": [BF16, "fused-qkv"],
    "first-block-cache": [BF16, "first-block-cache"],
    "attention-broadcast": [BF16, "attention-broadcast"],
    "faster-cache": [BF16, "faster-cache"],
    "taylor-seer": [BF16, "taylor-seer"],
    "compile, regional": [BF16, {"compile": {"regional": True, "fullgraph": True}}],
    "fp8 + compile, regional": [BF16, "fp8", {"compile": {"regional": True, "fullgraph": True}}],
    "int8 + compile, regional": [BF16, "int8", {"compile": {"regional": True, "fullgraph": True}}],
    "layerwise-casting": [BF16, "layerwise-casting"],
    "group-offload": [BF16, {"group-offload": {"kind": "block"}}],
}
