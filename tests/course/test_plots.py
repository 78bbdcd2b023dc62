"""Figures that are easy to get wrong: panels that do not fill their grid, clouds of different size."""

import pytest
import torch

from utils.notebook import plots


@pytest.fixture
def shown(monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "show", lambda figure, alt: (plots._demand_labels(figure, alt), figures.append(figure)))
    return figures


WORDS = {"title": "Clouds", "xlabel": "first coordinate", "ylabel": "second coordinate", "alt": "Five clouds."}


def test_clouds_of_different_size_need_no_labels(shown):
    sizes = (3, 10, 4, 7, 5)
    plots.clouds({str(size): torch.randn(size, 2) for size in sizes}, columns=3, **WORDS)
    assert [len(trace.x) for trace in shown[0].data] == list(sizes)


def test_labelled_clouds_name_every_point_in_every_panel(shown):
    plots.clouds({"here": torch.eye(2), "there": -torch.eye(2), "everywhere": torch.eye(2)}, labels=["a", "b"], **WORDS)
    assert [trace.name for trace in shown[0].data] == ["a", "b"] * 3
