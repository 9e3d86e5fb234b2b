"""A tiny FLUX in each process of a job over gloo: what all paint together against what each paints alone.

torchrun --nproc-per-node 2 -m tests.techniques.split_over_processes para-attention
"""

from __future__ import annotations

import sys
from typing import Any

import torch


def tiny_flux() -> Any:
    """A random FLUX pipeline, the same in every process; text is given as embeddings."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    made = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=None, tokenizer=None,
        text_encoder_2=None, tokenizer_2=None, transformer=transformer,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def latents_of(painter: Any, steps: int) -> torch.Tensor:
    """The last latents of that pipeline, of the same noise and text each time."""
    result: torch.Tensor = painter(
        prompt_embeds=torch.ones(1, 8, 32), pooled_prompt_embeds=torch.ones(1, 32), height=32, width=32,
        num_inference_steps=steps, generator=torch.Generator().manual_seed(0), output_type="latent",
    ).images  # fmt: skip
    return result


def main(name: str) -> None:
    import torch.distributed as dist

    from exporter import techniques

    painter, tokens = tiny_flux(), []
    painter.transformer.proj_out.register_forward_hook(lambda _, given, __: tokens.append(given[0].shape[1]))

    def latents() -> torch.Tensor:
        result: torch.Tensor = painter(
            prompt_embeds=torch.linspace(-1, 1, 8 * 32).view(1, 8, 32), height=32, width=32,
            pooled_prompt_embeds=torch.ones(1, 32), num_inference_steps=4, output_type="latent",
            generator=torch.Generator().manual_seed(0),
        ).images  # fmt: skip
        return result

    alone = latents()
    whole = tokens[-1]
    for _ in range(2):  # it can be applied again
        undo = techniques.apply(painter, [name])
        together = latents()
        assert tokens[-1] == whole // dist.get_world_size(), "the tokens were not split"
        undo()
        assert float((together - alone).norm() / alone.norm()) < 1e-5
    assert torch.equal(latents(), alone), "undo left something behind"
    print("the same, split, undone", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
