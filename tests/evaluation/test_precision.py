from __future__ import annotations

import faiss
import numpy as np
import pytest
import torch
from sentence_transformers.util import quantize_embeddings
from sklearn.metrics.pairwise import paired_cosine_distances

from matryoshka_st.errors import UserError
from matryoshka_st.evaluation.precision import (
    bytes_per_vector,
    calibrate,
    check_precision,
    quantize,
    with_exact_length,
)


def test_int8_decodes_as_faiss_does() -> None:
    training, vectors = torch.rand(200, 16), torch.rand(50, 16)
    quantizer = faiss.ScalarQuantizer(16, faiss.ScalarQuantizer.QT_8bit)
    quantizer.rangestat_arg = 0.0
    quantizer.train(training.numpy())
    expected = quantizer.decode(quantizer.compute_codes(vectors.numpy()))
    ours = quantize(vectors, "int8", calibrate(training, "training"))
    step = (training.amax(0) - training.amin(0)) / 255
    assert (
        ours - torch.from_numpy(expected)
    ).abs().max() <= 1.01 * step.max()  # faiss decodes to the middle of a step


def test_int8_is_exact_at_its_256_values_and_clips_beyond_the_ranges() -> None:
    ranges = calibrate(torch.tensor([[0.0, -1.0, 5.0], [255.0, 1.0, 5.0]]), "two")
    x = torch.tensor([[7.0, 1.0, 5.0], [300.0, -2.0, 9.0]])
    torch.testing.assert_close(quantize(x, "int8", ranges), torch.tensor([[7.0, 1.0, 5.0], [255.0, -1.0, 5.0]]))


def test_binary_has_the_bits_of_sentence_transformers() -> None:
    x = torch.randn(20, 64)
    packed = quantize_embeddings(x.numpy(), "ubinary")
    assert np.array_equal(np.packbits((quantize(x, "binary") > 0).numpy(), axis=1), packed)


@pytest.mark.parametrize("dim", [1, 2, 5, 32, 64, 128, 384, 768])
def test_signs_of_exact_length_normalise_without_rounding(dim: int) -> None:
    signs = quantize(torch.randn(400, dim), "binary")
    longer = with_exact_length(signs)
    lengths = longer.norm(dim=1)
    assert torch.equal(longer[:, :dim], signs)
    assert torch.equal(lengths, 2.0 ** lengths.log2().round())
    cosines = 1 - paired_cosine_distances(longer[:200], longer[200:])
    agree = (signs[:200] * signs[200:]).sum(dim=1)
    assert len(np.unique(cosines)) == len(agree.unique())


def test_float16_rounds_and_float32_does_not() -> None:
    x = torch.tensor([[0.1, 1 / 3]])
    assert torch.equal(quantize(x, "float16"), x.half().float())
    assert torch.equal(quantize(x, "float32"), x)


def test_bytes_and_names() -> None:
    assert [bytes_per_vector(64, check_precision(p)) for p in ("float32", "float16", "int8", "binary")] == [
        256,
        128,
        64,
        8,
    ]
    with pytest.raises(UserError, match=r"no precision 'int9'.*int8"):
        check_precision("int9")
