"""Test accuracy by optimizer, depth, activation and initializer, and what theory says of it.

The `vanishjax atlas` command on the digits that the package ships: rates chosen on validation data,
falling to 2 %, test accuracy shown, and over it the predicted sum of ln chi. A run that was broken
off goes on where it was, if it finds the same folder.

    python -m benchmarks trainability
"""

import json
from pathlib import Path

from benchmarks import record
from vanishjax.cli import main as vanishjax

CELLS = {
    "--optimizers": "momentum,adam,lion,muon,deep_muon",
    "--depths": "2,4,8,16,32,64",
    "--activations": "sigmoid,tanh,relu",
    "--inits": "lecun,critical_orthogonal",
    "--seeds": "3",
    "--epochs": "20",
}
QUICK = CELLS | {
    "--optimizers": "adam,deep_muon",
    "--depths": "2,8",
    "--activations": "sigmoid",
    "--inits": "lecun",
    "--seeds": "1",
    "--epochs": "3",
}


def main():
    """Measures the cells that are left and writes trainability.json."""
    parser = record.parser(__doc__)
    parser.add_argument("--work", type=Path, help="folder of the cells that are done")
    options = parser.parse_args()
    work = options.work or record.QUICK / ("atlas-quick" if options.quick else "atlas")
    asked = [word for pair in (QUICK if options.quick else CELLS).items() for word in pair]
    status = vanishjax(["atlas", "--decay", *asked, "--out", str(work)])
    if status:
        raise SystemExit(status)
    found = json.loads((work / "atlas.json").read_text())
    settings = found.pop("settings") | {"quick": options.quick}
    for own in ("command", "environment", "interrupted"):
        found.pop(own)
    record.write("trainability", options.out, settings, found)


if __name__ == "__main__":
    main()
