"""The attention path: what is chosen, what is refused, and what a refused one would compute."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName

from align.mmdit.attention import (
    BACKENDS,
    AttentionDevice,
    choose_attention,
    prove_attention,
    require_backend,
)

TEXT, IMAGE = 8, 24


def test_every_backend_of_the_dispatcher_is_judged():
    assert set(BACKENDS) == {name.value for name in AttentionBackendName}


@pytest.mark.parametrize(
    ("device", "masked", "backend", "kernel"),
    [
        (AttentionDevice("cpu", (2, 13)), False, "native", "flash for CPU"),
        (AttentionDevice("cuda", (2, 13), (9, 0), 91900), False, "native", "cudnn"),
        (AttentionDevice("cuda", (2, 10), (9, 0), 91900), False, "_native_cudnn", "cudnn"),
        (AttentionDevice("cuda", (2, 13), (9, 0), 91000), False, "_native_cudnn", "cudnn"),
        (AttentionDevice("cuda", (2, 13), (9, 0), 0), False, "native", "flash"),
        (AttentionDevice("cuda", (2, 13), (8, 0), 91900), False, "native", "flash"),
        (AttentionDevice("cuda", (2, 13), (8, 0), 91900), True, "native", "efficient"),
        (AttentionDevice("cuda", (2, 13), (7, 5), 91900), False, "native", "efficient"),
    ],
)
def test_the_choice_follows_the_device(device, masked, backend, kernel):
    choice = choose_attention(device, masked=masked)
    assert (choice.backend, choice.kernel) == (backend, kernel)
    assert require_backend(choice.backend, masked=masked).backward


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_chosen_path_is_proved_on_this_device(dtype):
    choice = choose_attention(AttentionDevice.here("cpu"))
    proof = prove_attention(choice.backend, "cpu", dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert proof.ops == ("aten._scaled_dot_product_flash_attention_for_cpu.default",)
    assert proof.forward_error < tolerance
    assert proof.backward_error < tolerance
    padded = prove_attention("native", "cpu", dtype, text_lengths=[16, 5])
    assert max(padded.forward_error, padded.backward_error) < tolerance


def test_wrong_backends_are_refused_with_the_right_ones():
    with pytest.raises(ValueError, match=r"'flash_varlen' is wrong for padded training.*native"):
        require_backend("flash_varlen", masked=True)
    with pytest.raises(
        ValueError, match=r"'_flash_3' is wrong for unpadded training.*without a gr"
    ):
        require_backend("_flash_3", masked=False)
    with pytest.raises(ValueError, match=r"unknown attention backend 'flush'.*_native_cudnn"):
        require_backend("flush", masked=False)
    assert not require_backend("sage", masked=False, backward=False).backward


def varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, **unused):
    """What flash-attn documents of ``flash_attn_varlen_func``, in plain arithmetic."""
    parts = []
    for i in range(len(cu_seqlens_q) - 1):
        rows = slice(cu_seqlens_q[i], cu_seqlens_q[i + 1])
        columns = slice(cu_seqlens_k[i], cu_seqlens_k[i + 1])
        own = [x.transpose(0, 1)[None] for x in (q[rows], k[columns], v[columns])]
        parts.append(F.scaled_dot_product_attention(*own)[0].transpose(0, 1))
    return torch.cat(parts)


def test_packing_by_count_is_wrong_for_padding_in_the_middle(monkeypatch):
    """Why the varlen backends are in no list of choices: 3 of 8 text tokens are real."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, TEXT + IMAGE, 2, 32, generator=generator) for _ in range(3))
    mask = torch.ones(2, TEXT + IMAGE, dtype=torch.bool)
    mask[:, 3:TEXT] = False
    exact = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (query, key, value)), attn_mask=mask[:, None, None]
    ).transpose(1, 2)
    monkeypatch.setattr(attention_dispatch, "flash_attn_varlen_func", varlen)
    packed = attention_dispatch._flash_varlen_attention(query, key, value, attn_mask=mask)
    error = (packed - exact)[:, TEXT:].norm() / exact[:, TEXT:].norm()
    assert error > 0.3
    unpadded = attention_dispatch._flash_varlen_attention(query, key, value)
    plain = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)))
    torch.testing.assert_close(unpadded, plain.transpose(1, 2))
