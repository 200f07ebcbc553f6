"""Flat storage of everything that is trained."""

import torch
from torch import Tensor, nn


class Arena:
    """Float32 parameters and their gradients as views of two flat tensors.

    One kernel then does what would take one for each of hundreds of factors: the optimizer step, the norm of
    the gradient, zeroing it, and summing it over processes. `flat` (n,) is the parameter handed to the
    optimizer.
    """

    def __init__(self, tensors: list[Tensor], device: torch.device) -> None:
        total = sum(tensor.numel() for tensor in tensors)
        self.flat = nn.Parameter(torch.empty(total, device=device))
        self.flat.grad = torch.zeros_like(self.flat)
        self.views: list[nn.Parameter] = []
        start = 0
        for tensor in tensors:
            span = slice(start, start + tensor.numel())
            self.flat.data[span] = tensor.reshape(-1).to(device)
            view = nn.Parameter(self.flat.data[span].view(tensor.shape))
            # Autograd adds to a gradient that is already there in place, hence into the flat one.
            view.grad = self.flat.grad[span].view(tensor.shape)
            self.views.append(view)
            start = span.stop

    @property
    def grad(self) -> Tensor:
        """The flat gradient (n,)."""
        assert self.flat.grad is not None
        return self.flat.grad
