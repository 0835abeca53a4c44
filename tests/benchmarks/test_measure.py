"""Counters against formulas, the clock and memory against work of known size."""

import torch
from torch import nn

from transformers_lvmae.measure import count_flops, count_saved_bytes, measure


def test_fused_attention_counts_as_its_eager_form():
    def attention(fused):
        query, key, value = (torch.randn(2, 3, n, 8, requires_grad=True) for n in (10, 7, 7))
        if fused:
            return nn.functional.scaled_dot_product_attention(query, key, value).sum()
        return ((query @ key.mT / 8**0.5).softmax(dim=-1) @ value).sum()

    for fused in (True, False):
        output, forward = count_flops(lambda fused=fused: attention(fused))
        _, backward = count_flops(output.backward)
        assert forward == 2 * (2 * 3 * 10 * 7 * 8) * 2
        assert backward == 2 * forward


def test_convolutions_and_linears_count_two_per_multiply_and_add():
    conv, linear = nn.Conv3d(3, 5, 3, padding=1), nn.Linear(6, 4)
    assert count_flops(lambda: conv(torch.randn(1, 3, 4, 6, 6)))[1] == 2 * 3 * 5 * 27 * 4 * 6 * 6
    assert count_flops(lambda: linear(torch.randn(7, 6)))[1] == 2 * 7 * 6 * 4


def test_a_storage_is_counted_once_and_weights_not_at_all():
    linears = nn.ModuleList([nn.Linear(16, 16) for _ in range(2)])
    tensor = torch.randn(8, 16, requires_grad=True)
    _, both = count_saved_bytes(linears, lambda: [linear(tensor) for linear in linears])
    assert both == 8 * 16 * 4
    with torch.no_grad():
        assert count_saved_bytes(linears, lambda: linears[0](tensor))[1] == 0


def test_peak_memory_and_seconds_are_those_of_the_work():
    def work():
        torch.ones(64 * 2**20)  # 256 MiB, gone at once
        sum(range(1_000_000))

    usage = measure(work)
    assert 250 * 2**20 < usage.peak_bytes < 280 * 2**20
    assert 0 < usage.cpu < 10
    assert usage.wall > 0
