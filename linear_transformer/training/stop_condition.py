"""Condition on a metric of an evaluation at which a run is complete before its last step."""

import operator
import re
from collections.abc import Callable, Iterable

from linear_transformer.errors import ConfigError

NAME = "stop_when"  # first word of the entry in the record of the evaluation that ended a run
_COMPARISONS = {">=": operator.ge, "<=": operator.le}


class StopCondition:
    """Condition such as "accuracy >= 0.99"; an empty text is never met.

    Attributes:
      entry: name of the entry in the record of an evaluation that met the condition.
      met: whether an evaluation during training has met the condition.
    """

    def __init__(self, text: str):
        """Reads the condition.

        Raises:
          ConfigError: the text is no condition.
        """
        found = re.fullmatch(
            r"\s*(\w+)\s*(>=|<=)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*", text
        )
        if text and found is None:
            raise ConfigError(
                f"config.stop_when is {text!r}; write METRIC >= VALUE or METRIC <= VALUE"
            )
        self._found = found
        self.entry = f"{NAME} {text}"
        self.met = False

    @property
    def record(self) -> dict[str, float]:
        """Entry of the record of an evaluation; empty if the condition is not met."""
        return {self.entry: 1.0} if self.met else {}

    def require_metric(self, names: Callable[[], Iterable[str]]) -> None:
        """Raises a ConfigError if there is a condition, and its metric has none of these names."""
        if self._found is not None and self._found[1] not in (known := list(names())):
            raise ConfigError(
                f"config.stop_when names {self._found[1]!r}; an evaluation has {', '.join(known)}"
            )

    def check(self, metrics: dict[str, float]) -> None:
        """Sets `met` by the metrics of an evaluation.

        Raises:
          ConfigError: the evaluation has no such metric.
        """
        if self._found is None:
            return
        self.require_metric(lambda: metrics)
        name, comparison, value = self._found.groups()
        self.met = self.met or _COMPARISONS[comparison](metrics[name], float(value))
