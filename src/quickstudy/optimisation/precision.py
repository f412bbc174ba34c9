"""In which type layers multiply."""

from __future__ import annotations

import torch


def choose_precision(name: str, device_type: str) -> torch.dtype:
    """The type in which layers multiply; `auto` is bfloat16 where the machine has instructions for it."""
    if name == "auto":
        if device_type == "cuda":
            fast = torch.cuda.is_bf16_supported()
        else:
            able = torch.cpu.get_capabilities()
            fast = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32
