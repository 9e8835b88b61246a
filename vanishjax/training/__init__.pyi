from . import data as data
from .history import History as History
from .loop import Progress as Progress
from .loop import fit as fit
from .loop import make_evaluate as make_evaluate
from .state import TrainState as TrainState
from .step import local_step as local_step
from .step import make_train_step as make_train_step
