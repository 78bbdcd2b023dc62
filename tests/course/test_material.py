"""What demos lean on: planes drawn at random, summaries of a Jacobian, tables."""

import torch

from utils.material.attention import looks_table
from utils.material.controls import random_plane
from utils.material.latent_links import coarse_jacobian, crosses, jacobian_summary, links_table


def test_random_planes_are_orthonormal_repeatable_and_where_they_should_be():
    inside = torch.eye(9)[2:5]
    for plane in (random_plane(9, seed=1), random_plane(9, seed=1, inside=inside)):
        torch.testing.assert_close(plane @ plane.T, torch.eye(2), atol=1e-5, rtol=0)
    assert plane[:, [0, 1, 5, 6, 7, 8]].abs().max() == 0
    assert torch.equal(random_plane(9, seed=1), random_plane(9, seed=1))
    assert not torch.allclose(random_plane(9, seed=1), random_plane(9, seed=2))


def test_a_coarse_jacobian_keeps_the_largest_magnitude_of_each_cell():
    grads = torch.tensor([[1.0, -4.0, 0.5], [2.0, 3.0, -0.25]])
    picture = coarse_jacobian(grads, torch.tensor([1, 2]), torch.tensor([1, 1, 2]), n_positions=2, cells=1)
    assert picture.tolist() == [[4.0, 0.5], [3.0, 0.25]]
    finer = coarse_jacobian(grads, torch.tensor([1, 2]), torch.tensor([1, 1, 2]), n_positions=2, cells=2)
    assert finer[0].tolist() == [1.0, 4.0, 0.5, 0.0] and finer[1].sum() == 0


def test_a_summary_and_its_table_name_the_strongest_links():
    places = torch.tensor([[0, 1, 7], [0, 2, 8]])
    jacobian = {
        "grads": torch.tensor([[2.0, 0.0], [-3.0, 1.0]]),
        "prev": (torch.tensor([1.0, 10.0]), places, (1, 3, 9)),
        "next": (torch.ones(1), places[:1], (1, 3, 9)),
        "recon": (torch.ones(2), places, (1, 3, 9)),
    }
    summary = jacobian_summary(jacobian, n_tokens=3, n_links=3)
    assert summary["by token"].tolist() == [[0, 0, 0], [0, 2, 0], [0, 3, 10]]
    assert summary["links"].tolist() == [[2, 8, 2, 8], [2, 8, 1, 7], [1, 7, 1, 7]]
    assert summary["contribution"].tolist() == [10, -3, 2] and summary["gradient"].tolist() == [1, -3, 2]
    assert summary["counts"] == [2, 1, 2, 1]
    assert summary["there"] == [0, 1, 0] and summary["kept"] == [0, 1, 0]
    (link,) = links_table(summary, ["s", "a", "b"], 3, 6, inside=False).to_dict("records")
    assert link == {"from": "3.7 at 'a'", "to": "6.8 at 'b'", "gradient": -3, "contribution": -3}
    assert len(links_table(summary, ["s", "a", "b"], 3, 6, inside=True)) == 2


def test_crosses_mark_a_cell_or_a_row():
    assert crosses(2, 2, row=1, column=0) == [["", ""], ["x", ""]]
    assert crosses(2, 2, row=0) == [["x", "x"], ["", ""]]


def test_a_look_is_told_with_its_head_and_its_context():
    words = ["s", " the", " ferry", " stayed", " where", " it"]
    (row,) = looks_table(words, torch.tensor([[13, 8, 5, 2]]), torch.tensor([0.98765])).to_dict("records")
    assert row == {
        "head": "L13H8",
        "token": " ferry stayed where [it]",
        "looks at": " ferry",
        "tokens back": 3,
        "attention": 0.988,
    }
