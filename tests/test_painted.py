"""What counts as painted: where less than 0.7 of the cloudy image's texture is left."""

import pytest
import torch

from declouder.painted import painted_share


@pytest.mark.parametrize(("left", "share"), [(0.6, 1.0), (0.8, 0.0)])
def test_texture_that_is_mostly_left_is_not_painted_up_to_the_edges(left, share):
    texture = torch.randn(2, 3, 24, 30, generator=torch.Generator().manual_seed(0))
    assert painted_share(texture, left * texture + 0.3).tolist() == [share, share]
