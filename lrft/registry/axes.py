"""The registries: one per axis of a recipe, and those of formats, tasks and analyses."""

from lrft.registry.config import AdapterConfig, FormatConfig, OptimizerConfig, ScheduleConfig
from lrft.registry.registry import Registry

ADAPTERS = Registry("adapter", "lrft.methods.adapters", AdapterConfig)
INITS = Registry("init", "lrft.methods.inits")
QUANTIZERS = Registry("quantization", "lrft.methods.quant")
ALLOCATORS = Registry("allocation", "lrft.methods.allocate")
RESTARTS = Registry("restart", "lrft.methods.restart")
SELECTORS = Registry("selection", "lrft.methods.select")
OPTIMIZERS = Registry("optimizer", "lrft.methods.optim", OptimizerConfig)
SCHEDULES = Registry("schedule", "lrft.methods.schedules", ScheduleConfig)
SIGNALS = Registry("signal", "lrft.methods.signals")
OBJECTIVES = Registry("objective", "lrft.methods.objectives")
ANALYSES = Registry("analysis", "lrft.methods.analysis")
FORMATS = Registry("format", "lrft.data.formats", FormatConfig)
TASKS = Registry("task", "lrft.evaluation.tasks")

# Section of a recipe -> the registry its `method` is looked up in.
AXES: dict[str, Registry] = {
    "quantization": QUANTIZERS,
    "adapter": ADAPTERS,
    "init": INITS,
    "allocate": ALLOCATORS,
    "restart": RESTARTS,
    "select": SELECTORS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "objective": OBJECTIVES,
}
