"""Compare tiles with whole images on large drawn scenes with small objects: AP or mIoU.

CONFIG is one of the demo's, whose classes are drawn. Three ways: tiles, of which the pipeline
enlarges each; the image resized to the size of such a tile; and the image at its own size.
"""

import argparse

from ..cli import add_config, make_parser


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add_config(parser)
    add('checkpoint', help='checkpoint file or URL')
    add('--scenes', type=int, default=2, help='number of scenes (2)')
    add('--side', type=int, default=4096, help='of a scene in pixels (4096)')
    add('--object', type=int, default=16, help='about the side of an object in pixels (16)')
    add('--tile', type=int, default=256, help='side of a tile in pixels (256)')
    add('--enlarge', type=float, default=2, help='factor by which the pipeline enlarges a tile (2)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from ..api import as_config, load
    from ..measure.large_scenes import draw_large_scene, evaluate_scenes, resizing_to, ways_of
    from ..terminal import say

    scenes = [draw_large_scene((0, n), args.side, args.object) for n in range(args.scenes)]
    cfg = as_config(args.config, args.cfg_options)
    if cfg.default_scope == 'mmdet':
        # A large image has more objects than COCO's.
        cfg.model.test_cfg.max_per_img = cfg.model.test_cfg.nms_pre = 100_000
    for way in ways_of(args.side, args.tile, args.enlarge):
        resizing_to(cfg, way.scale)
        found = evaluate_scenes(load(cfg, args.checkpoint), scenes, way.tile)
        kind = 'AP' if cfg.default_scope == 'mmdet' else 'mIoU'
        say(f'{way.name:8} resized to {way.scale:5}: {kind} {found:.3f}')
