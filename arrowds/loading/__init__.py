"""From batches of ids to batches of tensors: a dataset over Arrow memory, a resumable loader, learning rates.

sampler --ids--> dataset --samples--> loader --> training loop, whose learning rate lr_scaling scales
"""

from arrowds.loading.dataset import ArrowDataset
from arrowds.loading.loader import CurriculumDataLoader, RepeatingLoader, ResumableSampler, check_length
from arrowds.loading.lr_scaling import scale_lr_by_batch_size

__all__ = [
    "ArrowDataset",
    "CurriculumDataLoader",
    "RepeatingLoader",
    "ResumableSampler",
    "check_length",
    "scale_lr_by_batch_size",
]
