"""The splice against a row-by-row loop, for any pieces and masks."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerbridge.model.splice import IGNORED, Piece, positions, splice


def row_by_row(pieces):
    """The obvious way: take each row's real vectors in order, then fill up on the left."""
    batch, width = pieces[0].embeds_BTD.shape[0], pieces[0].embeds_BTD.shape[2]
    rows, labels = [], []
    for row in range(batch):
        vectors, targets = [], []
        for piece in pieces:
            for column in range(piece.mask_BT.shape[1]):
                if piece.mask_BT[row, column]:
                    vectors.append(piece.embeds_BTD[row, column])
                    targets.append(int(piece.labels_BT[row, column]) if piece.labels_BT is not None else IGNORED)
        rows.append(vectors)
        labels.append(targets)
    longest = max(map(len, rows))
    embeds = torch.zeros(batch, longest, width)
    mask = torch.zeros(batch, longest, dtype=torch.bool)
    position_ids = torch.zeros(batch, longest, dtype=torch.long)
    label_ids = torch.full((batch, longest), IGNORED)
    for row, vectors in enumerate(rows):
        start = longest - len(vectors)
        for index, vector in enumerate(vectors):
            embeds[row, start + index] = vector
            mask[row, start + index] = True
            position_ids[row, start + index] = index
            label_ids[row, start + index] = labels[row][index]
    return embeds, mask, position_ids, label_ids


@st.composite
def piece_lists(draw):
    batch = draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    pieces = []
    for _ in range(draw(st.integers(1, 4))):
        width = draw(st.integers(0, 4))
        mask = torch.rand(batch, width, generator=generator) < draw(st.sampled_from([0.3, 0.7, 1.0]))
        labels = None
        if draw(st.booleans()):
            labels = torch.randint(0, 9, (batch, width), generator=generator)
        pieces.append(Piece(torch.randn(batch, width, 3, generator=generator), mask, labels))
    always = torch.ones(batch, 1, dtype=torch.bool)
    pieces.append(Piece(torch.randn(batch, 1, 3, generator=generator), always))
    return pieces


@settings(max_examples=150, deadline=None)
@given(piece_lists())
def test_splice_equals_the_row_by_row_loop(pieces):
    for ours, expected in zip(splice(pieces), row_by_row(pieces), strict=True):
        assert torch.equal(ours, expected)


@settings(max_examples=50, deadline=None)
@given(piece_lists())
def test_no_pad_is_in_the_middle_and_every_row_ends_at_the_last_position(pieces):
    mask = splice(pieces).mask_BT
    assert mask[:, -1].all()
    assert (mask.long().diff(dim=1) >= 0).all()
    assert mask.any(dim=0).all()


def test_positions_count_real_tokens():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)
    assert positions(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
