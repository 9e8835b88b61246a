"""`python -m vanishjax.examples` lists the examples, with a line on each."""

import ast
import pkgutil
from pathlib import Path

from vanishjax import examples


def main() -> None:
    """Prints how each example is run, and the first line of its docstring; imports none."""
    folder = Path(__file__).parent
    print(f"Scripts to run, read and change, in {folder}:\n")
    for module in pkgutil.iter_modules(examples.__path__):
        if module.name != "__main__":
            source = (folder / f"{module.name}.py").read_text(encoding="utf-8")
            doc = ast.get_docstring(ast.parse(source)) or ""
            print(f"  python -m vanishjax.examples.{module.name}\n      {doc.splitlines()[0]}")
    print("\nEach takes --help.")


if __name__ == "__main__":
    main()
