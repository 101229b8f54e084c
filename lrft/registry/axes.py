"""The registries: one per axis of a recipe, and those that a command or another method asks by name."""

from lrft.registry.config import AdapterConfig, FormatConfig, OptimizerConfig, RewardConfig, ScheduleConfig
from lrft.registry.registry import Registry

# What the contract of an axis cannot say for a method -> what its author writes.
OF_ADAPTERS = {
    "provides": 'provides = {"adapters"}, and "mergeable" in it where delta_weight says the change of the weight',
    "count": "count(config, site) -> int as a @staticmethod, how many numbers train at a site",
}
OF_STORAGES = {
    "encode": "def encode(self, weight), which keeps the weight in buffers of the layer",
    "weight": "def weight(self), which gives it back as (out, in)",
}

ADAPTERS = Registry("adapter", "lrft.methods.adapters", AdapterConfig, OF_ADAPTERS)
INITS = Registry("init", "lrft.methods.inits")
QUANTIZERS = Registry("quantization", "lrft.methods.quant", owes=OF_STORAGES)
ALLOCATORS = Registry("allocation", "lrft.methods.allocate")
RESTARTS = Registry("restart", "lrft.methods.restart")
SELECTORS = Registry("selection", "lrft.methods.select")
PRUNERS = Registry("pruning", "lrft.methods.prune")
OPTIMIZERS = Registry(
    "optimizer",
    "lrft.methods.optim",
    OptimizerConfig,
    {"build": "build(cls, params, config) as a @classmethod, the optimizer over these parameters"},
)
SCHEDULES = Registry("schedule", "lrft.methods.schedules", ScheduleConfig)
SIGNALS = Registry("signal", "lrft.methods.signals")
OBJECTIVES = Registry("objective", "lrft.methods.objectives")
ANALYSES = Registry("analysis", "lrft.methods.analysis")
REWARDS = Registry("reward", "lrft.methods.rewards", RewardConfig)
FORMATS = Registry("format", "lrft.data.formats", FormatConfig)
TASKS = Registry("task", "lrft.evaluation.tasks")
SEARCHES = Registry("search", "lrft.methods.search")
AGGREGATORS = Registry("aggregator", "lrft.methods.aggregate")
COMBINATIONS = Registry("combination", "lrft.methods.combine")
DATA_SELECTIONS = Registry("data selection", "lrft.methods.data_selection")
GENERATORS = Registry("generator", "lrft.methods.generate")
TRANSFER_ESTIMATES = Registry("transfer estimate", "lrft.methods.transfer")

# Section of a recipe -> the registry its `method` is looked up in.
AXES: dict[str, Registry] = {
    "quantization": QUANTIZERS,
    "adapter": ADAPTERS,
    "init": INITS,
    "allocate": ALLOCATORS,
    "restart": RESTARTS,
    "select": SELECTORS,
    "prune": PRUNERS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "objective": OBJECTIVES,
}

# Those whose methods act between the steps of a run, in that order.
TIMED = {axis: AXES[axis] for axis in ("allocate", "restart", "select", "prune")}
