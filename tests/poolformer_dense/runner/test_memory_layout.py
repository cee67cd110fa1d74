"""Maps keep the backbone's layout, but for operators that read them as contiguous."""

from __future__ import annotations

import pytest
import torch
from mmcv.ops import deform_conv2d
from mmengine.registry import MODELS
from torch import nn

from backbones import PoolFormer
from poolformer_dense.runner import DenseRunner
from poolformer_dense.runner.memory_layout import keep_layout
from tests.tiny_models import tiny_config, tiny_predictor

LAST = torch.channels_last
TINY = dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))


class Deforming(nn.Module):
    """Calls an operator of mmcv as a function."""

    operator = staticmethod(deform_conv2d)


@pytest.mark.parametrize('layout', [torch.contiguous_format, LAST])
def test_regions_are_pooled_alike_whatever_the_layout(root, layout):
    cfg = tiny_config(root, 'mask_rcnn')
    with MODELS.switch_scope_and_registry('mmdet'):
        model = keep_layout(MODELS.build(cfg.model)).eval()
    image = torch.randn(2, 3, 64, 96)
    regions = torch.tensor([[0.0, 5, 9, 40, 50], [1, 20, 0, 90, 63]])
    pooled = []
    for backend in ('reference', 'cpu'):
        model.backbone.set_backend(backend)
        maps = model.extract_feat(image)
        pooled.append(model.roi_head.bbox_roi_extractor(maps[:4], regions))
        model.to(memory_format=layout)
    assert model.backbone(image)[0].is_contiguous(memory_format=LAST)
    assert layout is not LAST or not maps[0].is_contiguous()
    torch.testing.assert_close(*pooled, atol=1e-4, rtol=1e-4)


def test_a_head_with_an_operator_of_its_own_gets_contiguous_maps():
    plain, deforming = (
        keep_layout(nn.ModuleList([PoolFormer(TINY, backend='cpu'), head]))
        for head in (nn.Identity(), Deforming())
    )
    x = torch.randn(1, 3, 64, 64)
    assert not plain[0](x)[0].is_contiguous()
    assert deforming[0](x)[0].is_contiguous()


def test_runs_and_predictions_keep_the_layout(root, tmp_path):
    predictor = tiny_predictor(root, 'fpn', tmp_path / 'weights.pth')
    with MODELS.switch_scope_and_registry('mmseg'):
        built = DenseRunner.build_model(object.__new__(DenseRunner), predictor.cfg.model)
    assert not predictor.model.backbone.contiguous
    assert not built.backbone.contiguous
