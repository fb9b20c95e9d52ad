"""One run from a configuration: dataset -> index -> loader -> training -> tables and a chart.

config --> data (source, index, loader) --> run (steps, resume) --> results (tables) --> chart
                                               |
                                    engines: torch_engine, deepspeed_engine
"""

from arrowds.pipeline.config import PipelineConfig, load_config
from arrowds.pipeline.data import create_data_loader
from arrowds.pipeline.run import execute_data_pipeline, run_pipeline

__all__ = ["PipelineConfig", "create_data_loader", "execute_data_pipeline", "load_config", "run_pipeline"]
