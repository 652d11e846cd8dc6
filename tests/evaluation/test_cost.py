import pandas as pd
import pytest
from conftest import load_run

from fruitveg_tl.evaluation import cost
from fruitveg_tl.models.backbones import BACKBONES
from fruitveg_tl.models.network import build_network


# Billions published for 224 pixels with the 1000-class head (He et al. 2016, Sandler et al. 2018);
# the head here is another.
@pytest.mark.parametrize(
    ("key", "published", "head"),
    [("vgg16", 15.47, 123.6e6), ("resnet50", 3.86, 2.0e6), ("mobilenetv2", 0.300, 1.3e6)],
)
def test_multiplications_are_those_published(key, published, head):
    model = build_network(BACKBONES[key], 2, 224).model
    assert cost.multiplications(model) == pytest.approx(1e9 * published - head, rel=0.02)


def test_a_studys_costs_are_read_and_others_measured(finished):
    run = load_run(finished)
    found = cost.cost(run)
    assert found["parameters"] == 14_714_688 + 512 * 3 + 3
    assert found["megabytes"] == pytest.approx(58.9, abs=0.1)
    assert found["latency_ms"] > 0 and found["gigaflops"] > 0 and "cores" in found["machine"]
    table = pd.DataFrame([found]).assign(backbone="vgg16", size=32, latency_ms=7.0)
    table.to_csv(finished / "costs.csv", index=False)
    assert cost.cost(run)["latency_ms"] == 7.0
