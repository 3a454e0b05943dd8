"""`nbdev_export` with at most 100 characters per line of `__all__`, where nbdev takes 120."""

import nbdev.maker
from nbdev.doclinks import nbdev_export

WIDTH = 100


def main() -> None:
    """Export all notebooks."""
    wrapper = nbdev.maker.TextWrapper

    def narrow(width: int, **options):
        return wrapper(width=min(width, WIDTH), **options)

    nbdev.maker.TextWrapper = narrow
    try:
        nbdev_export()
    finally:
        nbdev.maker.TextWrapper = wrapper


if __name__ == "__main__":
    main()
