"""Writing of matplotlib figures."""

from typing import Any

from etils import epath

from linear_transformer.errors import UserError


def save_figure(figure: Any, path: epath.Path) -> None:
    """Writes a PNG, and closes the figure in any case.

    Raises:
      UserError: the file can't be written.
    """
    import matplotlib.pyplot as plt

    try:
        with path.open("wb") as file:
            figure.savefig(file, format="png", dpi=120)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        plt.close(figure)
