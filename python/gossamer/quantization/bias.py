"""Bias correction: what rounding a weight adds to the mean of the outputs is taken out of the bias.

b' = b + (W - Ŵ) E[x],    so that    E[Ŵ x + b'] = E[W x + b]
"""

from __future__ import annotations

from torch import Tensor

from .. import _check


def corrected_bias(
    W: Tensor, rounded: Tensor, bias: Tensor | None, mean: Tensor, taps: int = 1
) -> Tensor:
    """The bias with which a layer has the mean outputs that it had before its weight was rounded.

    Parameters
    ----------
    W : Tensor
        The weight as it was, shape (N, K); of a convolution as ``folding.to_matrix`` gives it, of
        one in groups with K of one group.
    rounded : Tensor
        Ŵ, of the same shape.
    bias : Tensor, optional
        As it was, shape (N,).
    mean : Tensor
        E[x], shape (K,), as in the statistics of the layer; of a convolution in groups
        (groups * K,), in the order (taps, channels of all groups).
    taps : int
        Positions of the kernel of a convolution in groups; of no effect for others.

    Returns
    -------
    Tensor
        Shape (N,), in the dtype of `bias`; float32 where there was none. Sums are float64.

    Raises
    ------
    ValueError
        For shapes that do not fit, or NaN or infinity in `mean`.

    References
    ----------
    Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019,
    section 4.2.

    Examples
    --------
    >>> from gossamer.quantization import corrected_bias
    >>> W, rounded = torch.tensor([[1.2, 2.0]]), torch.tensor([[1.0, 2.0]])
    >>> corrected_bias(W, rounded, None, torch.tensor([5.0, 1.0]))
    tensor([1.0000])
    """
    N, K = W.shape
    if rounded.shape != W.shape:
        raise ValueError(
            f"corrected_bias: rounded: got {_check.describe(rounded)}, wanted {list(W.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (N,):
        raise ValueError(f"corrected_bias: bias: got {_check.describe(bias)}, wanted [{N}]")
    groups = max(1, mean.numel() // K)
    if mean.shape != (groups * K,) or N % groups or K % taps:
        raise ValueError(f"corrected_bias: mean: got {_check.describe(mean)}, wanted [{K}]")
    if not bool(mean.isfinite().all()):
        raise ValueError("corrected_bias: mean: holds NaN or infinity")
    lost = (W.detach().double() - rounded.double()).view(groups, N // groups, K)
    inputs = mean.double().view(taps, groups, K // taps).transpose(0, 1).reshape(groups, K, 1)
    shift = (lost @ inputs).flatten()
    if bias is None:
        return shift.float()
    return (bias.detach().double() + shift).to(bias.dtype)
