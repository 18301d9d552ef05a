from __future__ import annotations

import copy
import itertools

import pytest
import torch

from aam.data.tokenizer import tokenize
from aam.models.asv_encoder import ASVEncoder

ASVS = ["ACGTACGTAC", "TTTTT", "GATTACA", "CCCCCCCCCCCC"]


def build(**options) -> ASVEncoder:
    torch.manual_seed(0)
    encoder = ASVEncoder(dim=8, heads=2, layers=2, max_bp=15, **options)
    encoder.set_reference(torch.from_numpy(tokenize(["ACGTAC", "TTGCA", "GATTACAGG"], 15)[:, 1:]))
    return encoder


def tokens(sequences: list[str]) -> torch.Tensor:
    return torch.from_numpy(tokenize(sequences, 15))


def test_an_embedding_depends_on_the_asv_alone():
    encoder = build()
    together = encoder(tokens(ASVS), True)
    torch.testing.assert_close(build(chunk_size=3)(tokens(ASVS), True), together, rtol=1e-4, atol=1e-5)
    for sequence, embedding in zip(ASVS, together, strict=True):
        torch.testing.assert_close(encoder(tokens([sequence]), False)[0], embedding, rtol=1e-4, atol=1e-5)


def test_one_base_and_its_place_matter():
    encoder = build()
    found = encoder(tokens(["AACGTT", "AACGTC", "ACAGTT"]), False)
    distances = torch.cdist(found, found)
    assert (distances[~torch.eye(3, dtype=torch.bool)] > 1e-3).all()


@pytest.mark.parametrize("copied", [False, True])
def test_a_loaded_encoder_uses_the_reference_that_was_saved(copied):
    """Longer sequences than its own reference has, which must not be cut."""
    saved = build()
    saved.set_reference(tokens(["ACGTACGTACGTACG", "A", "GGGGGG"])[:, 1:])
    torch.manual_seed(1)
    other = ASVEncoder(dim=8, heads=2, layers=2, max_bp=15)
    other.set_reference(tokens(["AC"])[:, 1:])
    if copied:
        other = copy.deepcopy(other)
    other.load_state_dict(saved.state_dict())
    assert torch.equal(other(tokens(ASVS), True), saved(tokens(ASVS), True))


def test_references_are_repeated_or_left_out():
    encoder = build()
    many = ["".join(letters) for letters in itertools.product("ACGT", repeat=3)]
    for sequences in (["ACG"], many):
        encoder.set_reference(tokens(sequences)[:, 1:])
        assert torch.isfinite(encoder(tokens(ASVS), True)).all()


def test_training_in_chunks_keeps_no_activations():
    """Beside the embeddings of all ASVs, what the backward pass holds does not grow with their number."""
    encoder = build(chunk_size=2)
    held = []
    for number in (4, 40):
        rows = tokens(["ACGTACGTAC"]).repeat(number, 1)
        sizes: list[int] = []

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            encoder(rows, False)
        held.append(sum(sizes))
    assert held[1] - held[0] <= 36 * (encoder.reference.shape[1] + 2 * encoder.token_embedding.embedding_dim)


@pytest.mark.parametrize("masked", [["ACGTN", "TTNAC"], ["GATTACANNACGTAC"]])
def test_one_pass_for_all_equals_a_pass_for_each(masked):
    rows, to_restore = tokens(ASVS), tokens(masked)[:, : len(masked[0]) + 1]
    places = to_restore == 7
    flat = places.flatten().nonzero().flatten()
    apart, together = build(), build()
    expected = apart(rows, True), apart.encode_places(to_restore, False, places)
    found = together.embed_and_encode_places(rows, True, to_restore, False, flat)
    for encoder, (embeddings, at_places) in ((apart, expected), (together, found)):
        (embeddings.sin().sum() + at_places.sin().sum()).backward()
        assert all(parameter.grad is not None for parameter in encoder.parameters())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(together.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)
    together.in_one_piece = lambda device: True
    torch.testing.assert_close(together(rows, True), expected[0], rtol=1e-4, atol=1e-5)
