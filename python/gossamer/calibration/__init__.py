"""What is measured by running a model over a few batches; shared by the techniques."""

from .batches import Batches, call, evaluating, sized
from .second_moments import second_moments

__all__ = ["Batches", "call", "evaluating", "second_moments", "sized"]
