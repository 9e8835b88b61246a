"""Small networks of the kinds that people train, healthy and sick, in ordinary public model code.

What is sick isn't decided here but by training (`benchmarks.real_networks`); what is written here,
and was before any of them was examined, is what would be wrong with one that doesn't train.
"""

from benchmarks.real_zoo.eighth_fresh import eighth_fresh_networks
from benchmarks.real_zoo.eleventh_fresh import eleventh_fresh_networks
from benchmarks.real_zoo.fifteenth_fresh import fifteenth_fresh_networks
from benchmarks.real_zoo.fifth_fresh import fifth_fresh_networks
from benchmarks.real_zoo.fourteenth_fresh import fourteenth_fresh_networks
from benchmarks.real_zoo.fourth_fresh import fourth_fresh_networks
from benchmarks.real_zoo.fresh import fresh_networks
from benchmarks.real_zoo.held_out import held_out_networks
from benchmarks.real_zoo.network import Network, Task
from benchmarks.real_zoo.ninth_fresh import ninth_fresh_networks
from benchmarks.real_zoo.second_fresh import second_fresh_networks
from benchmarks.real_zoo.seventeenth_fresh import seventeenth_fresh_networks
from benchmarks.real_zoo.seventh_fresh import seventh_fresh_networks
from benchmarks.real_zoo.sixteenth_fresh import sixteenth_fresh_networks
from benchmarks.real_zoo.sixth_fresh import sixth_fresh_networks
from benchmarks.real_zoo.tenth_fresh import tenth_fresh_networks
from benchmarks.real_zoo.third_fresh import third_fresh_networks
from benchmarks.real_zoo.thirteenth_fresh import thirteenth_fresh_networks
from benchmarks.real_zoo.tuning import tuning_networks
from benchmarks.real_zoo.twelfth_fresh import twelfth_fresh_networks

__all__ = [
    "Network",
    "Task",
    "eighth_fresh_networks",
    "eleventh_fresh_networks",
    "fifteenth_fresh_networks",
    "fifth_fresh_networks",
    "fourteenth_fresh_networks",
    "fourth_fresh_networks",
    "fresh_networks",
    "held_out_networks",
    "ninth_fresh_networks",
    "second_fresh_networks",
    "seventeenth_fresh_networks",
    "seventh_fresh_networks",
    "sixteenth_fresh_networks",
    "sixth_fresh_networks",
    "tenth_fresh_networks",
    "third_fresh_networks",
    "thirteenth_fresh_networks",
    "tuning_networks",
    "twelfth_fresh_networks",
]
