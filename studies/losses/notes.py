"""What is said of single losses beside their row in the registry; one without a note has none on the page."""

_ALPHA = (
    "a is `alpha`; with 1 it is the loss without a power. For a > 1 the first term has no gradient where the boxes do "
    "not overlap, and next to none where they overlap little; a power of 0 has the derivative 0."
)
_DIVERGENCE = (
    "KL(P || G) = 2 (dx2/wg2 + dy2/hg2) + (w2/wg2 + h2/hg2)/2 + ln(wg hg/(w h)) - 1, of Gaussians with the covariance "
    "diag(w2/4, h2/4): the loss of rotated boxes for boxes that are not. Smooth at P = G, so that a small error has a "
    "small gradient. A side of exactly 0 does not grow: [numerics](numerics.md#further-losses)."
)

NOTES: dict[str, tuple[str, ...]] = {
    "iou": ("No gradient where the boxes do not overlap. For -ln(I/U) take `iou` of `icr_terms`.",),
    "diou": (
        (
            "Far from the target rho2/c2 tends to 1, and its pull falls with the square of the distance: see the "
            "[regression study](study.md)."
        ),
    ),
    "ciou": ("alpha is 0 where v is 0, so identical boxes have the loss 0, exactly.",),
    "eiou": ("This is the *Efficient* IoU loss. The EIoU of MMDetection is the Extended one.",),
    "siou": (
        (
            "Delta = sum over both axes of 1 - exp(-(2 - Lambda) (d/side of C)2), d the distance of the centres along "
            "the axis and Lambda = sin(2 asin(dy/rho)); Omega = sum of (1 - exp(-|w - wg|/max(w, wg)))4 and the same "
            "of h."
        ),
    ),
    "alpha_iou": (_ALPHA,),
    "alpha_giou": (_ALPHA,),
    "alpha_diou": (_ALPHA,),
    "alpha_ciou": (
        _ALPHA,
        "alpha of ciou is that of the plain IoU.",
    ),
    "mpdiou": (
        (
            "W and H are those of the image that the network sees. The range is that of boxes inside it; beyond, the "
            "loss has no bound. Its second term is small for small boxes, and so is its pull where boxes do not "
            "overlap."
        ),
    ),
    "shape": (
        (
            "s is `exponent`; `scale=` is something else here. With s = 0, or a square target, ww = hh = 1. With s > "
            "0 the range is [0, 3.28). dx goes with hh and dy with ww, as in the authors' code."
        ),
    ),
    "piou": ("p counts in sides of the target and needs no enclosing box.",),
    "piou2": (
        (
            "The weight 3 q exp(-q2) is *not* held constant, as in the authors' code. It is largest at p = ln(lambda "
            "sqrt 2), 0.61 by default. Of boxes that do not overlap the loss is largest at p = 0.94 and falls beyond: "
            "**a step downwards leads a far prediction away from its target**. It fits where an assigner hands out "
            "near predictions alone."
        ),
    ),
    "wiou": (
        (
            'The gradient of c2 is left out, so it is not that of the value. v2 and v3 are this loss with `wise="v2"` '
            'and `wise="v3"`, see [below](#wise).'
        ),
    ),
    "interp": (
        (
            "a is `interpolation`: the box between lies so far on the way to G. Boxes of equal sides have a gradient "
            "up to a distance of 1/(1 - a) sides, 50 by default, and none beyond. The dynamic form, whose a depends "
            "on the IoU, is not here."
        ),
    ),
    "sd": (
        (
            "`area` is what a target has to have to count as large: from there on b = delta, and the loss is `ciou`. "
            "The paper's R_oc, by which boxes of a feature map become those of the image, is `scale=`. This is the "
            "loss of boxes; that of masks has other weights."
        ),
    ),
    "nwd": (
        (
            "c is `constant`. It says what counts as far, in pixels: the picture shows how much the size of a target "
            "matters. Overlap does not count. At P = G the loss has a cone, whose gradient is 0 at its tip alone."
        ),
    ),
    "gcd": (
        "As `nwd`, but in sides of both boxes: the size of a target does not matter. A prediction with a side of "
        "exactly 0 has the loss 1 and no gradient.",
    ),
    "kld": (_DIVERGENCE,),
    "reverse_kld": (
        (
            "KL(G || P) is that of `kld` with the boxes exchanged: sides of the prediction are the measure, and a "
            "prediction that is too small costs more than one that is too large. The first author's code "
            "for TensorFlow has this direction, MMRotate's `GDLoss` too; `GDLoss_v1` has that of `kld`."
        ),
    ),
}

_RUN = "the authors' code, run beside it"
CHECKED: dict[str, str] = {
    **dict.fromkeys(("giou", "diou", "ciou"), "torchvision's, in the tests"),
    **dict.fromkeys(("alpha_iou", "alpha_giou", "alpha_diou", "alpha_ciou"), f"{_RUN} (Jacobi93/Alpha-IoU, 39d439e)"),
    "mpdiou": "ports and the paper as remembered; no code of the authors was found",
    "shape": f"{_RUN} (malagoutou/Shape-IoU, 6cc086e)",
    **dict.fromkeys(("piou", "piou2"), f"{_RUN} (fppccc/Powerful-IoU, dec8b28)"),
    "wiou": f"{_RUN} (Instinct323/wiou, both branches)",
    "interp": f"{_RUN} (NuayHL/Ultralytics, 80c9f61)",
    "sd": f"{_RUN} (JN-Yang/PConv-SDloss-Data, a801f04)",
    "nwd": f"{_RUN} (jwwangchn/NWD, 9775ac2)",
    "gcd": f"{_RUN} (MArKkwanGuan/mmdet-GCD, 59f0843)",
    "kld": (
        "the first author's code, read (yangxue0827/RotationDetection, 41027f1), and MMRotate's `GDLoss_v1`, run "
        "beside it (b030f38), but for the factor below"
    ),
    "reverse_kld": "MMRotate's `GDLoss`, run beside it (b030f38), but for the square root below",
}
