"""The command line: ``python -m studies.scenes write | view``."""

import argparse
import sys
from pathlib import Path

from icr_kernels.paired_data import read_coco

from . import LabelNoise, viewer, write


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m studies.scenes", description="Generated images of vehicles and their plates, with labels."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    make = commands.add_parser("write", help="a data set: images, COCO JSON with parent_id, YOLO txt and data.yaml")
    make.add_argument("folder", type=Path)
    make.add_argument("--train", type=int, default=1000, metavar="N", help="training images (default: %(default)s)")
    make.add_argument("--val", type=int, default=200, metavar="N", help="validation images (default: %(default)s)")
    make.add_argument("--size", type=int, default=320, help="pixels of a side (default: %(default)s)")
    make.add_argument("--zoom", type=float, default=1.0, help="more: fewer and larger vehicles (default: %(default)s)")
    make.add_argument("--seed", type=int, default=0, help="of the training images; the next one's are validated on")
    for field, text in {
        "jitter": "standard deviation of a labelled box, in its sides",
        "misses": "share of boxes without a label",
        "beyond": "share of plates that are labelled beyond their vehicle",
    }.items():
        make.add_argument(f"--{field}", type=float, default=0.0, help=f"training labels: {text} (default: %(default)s)")
    make.set_defaults(command=_write)

    view = commands.add_parser("view", help="a contact sheet of the first images of a COCO JSON, with boxes and pairs")
    view.add_argument("annotations", type=Path)
    view.add_argument("picture", type=Path, help="the picture to write, PNG or JPEG")
    view.add_argument("--images", type=Path, help="the folder of the images (default: that of the JSON)")
    view.add_argument("--count", type=int, default=12, help="images (default: %(default)s)")
    view.add_argument("--columns", type=int, default=4, help="of the sheet (default: %(default)s)")
    view.set_defaults(command=_view)
    options = parser.parse_args(arguments)
    return options.command(options)


def _write(options: argparse.Namespace) -> int:
    noise = LabelNoise(options.jitter, options.misses, options.beyond)
    camera = {"size": options.size, "zoom": options.zoom}
    write(options.folder, "train", options.train, **camera, seed=options.seed, noise=noise)
    write(options.folder, "val", options.val, **camera, seed=options.seed + 1)
    print(f"written: {options.folder}")
    return 0


def _view(options: argparse.Namespace) -> int:
    data = read_coco(options.annotations, options.images)
    cells = [
        viewer.labelled(viewer.read(image.file), image.boxes, image.labels, image.parent_idx)
        for image in data.images[: options.count]
    ]
    if not cells:
        print(f"{options.annotations}: no images.")
        return 2
    viewer.save(options.picture, viewer.contact_sheet(cells, options.columns))
    print(f"written: {options.picture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
