"""Pooling of token vectors, with padding on either side."""

from __future__ import annotations

from scvec.backbones.hf import last_vectors, mean_vectors, padded, prompt_around


def test_padding_on_either_side_is_not_read() -> None:
    import torch

    nan = float("nan")
    tokens = torch.tensor(
        [
            [[1.0, 2.0], [3.0, 6.0], [nan, nan]],  # padded on the right
            [[9.0, 9.0], [1.0, 2.0], [3.0, 6.0]],  # padded on the left
            [[1.0, 1.0], [1.0, 1.0], [4.0, 1.0]],  # not padded
            [[9.0, 9.0], [5.0, 7.0], [nan, 9.0]],  # padded on both sides
        ]
    )
    mask = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 1, 1], [0, 1, 0]])
    assert mean_vectors(tokens, mask).tolist() == [[2.0, 4.0], [2.0, 4.0], [2.0, 1.0], [5.0, 7.0]]
    assert last_vectors(tokens, mask).tolist() == [[3.0, 6.0], [3.0, 6.0], [4.0, 1.0], [5.0, 7.0]]


def test_sums_use_single_precision() -> None:
    import torch

    # bf16 cannot count to 4,096.
    tokens, mask = torch.ones(1, 4096, 1, dtype=torch.bfloat16), torch.ones(1, 4096, dtype=torch.int64)
    mean = mean_vectors(tokens, mask)
    assert mean.dtype == torch.float32 and mean.tolist() == [[1.0]]


def test_padded() -> None:
    tokens, mask = padded([[5, 6, 7], [8]], 0)
    assert tokens.tolist() == [[5, 6, 7], [8, 0, 0]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_the_prompt_keeps_braces_of_the_text() -> None:
    assert prompt_around("a {b} c", "eol") == 'This sentence : "a {b} c" means in one word:"'
    assert prompt_around("a {b} c", "mean") == prompt_around("a {b} c", "last") == "a {b} c"
