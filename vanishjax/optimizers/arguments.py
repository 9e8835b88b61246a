"""What optimizers' arguments may be."""

from collections.abc import Callable
from typing import Any, TypeAlias

import optax

LearningRate: TypeAlias = optax.ScalarOrSchedule
Mask: TypeAlias = Any | Callable[[optax.Params], Any] | None
